"""From a sample of the index to bytes and pixels."""

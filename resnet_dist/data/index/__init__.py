"""The index: what a data set is, from a folder of class folders or from tar shards."""

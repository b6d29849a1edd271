"""What is measured and recorded: meters on the device, throughput, and the sinks of records."""

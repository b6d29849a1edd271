"""Metrics: meters on the device, throughput, and the sinks that records are written to."""

"""The operating system: files, processes, signals, ranks, and the failpoints of tests."""

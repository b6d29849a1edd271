"""The operating system: files, processes, and the places where tests make them fail."""

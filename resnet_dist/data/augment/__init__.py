"""Augmentation: what is done to each image (NumPy, pure), and doing it (torch)."""

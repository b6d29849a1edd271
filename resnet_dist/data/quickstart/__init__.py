"""The built-in data set: pictures of drawn shapes in ten classes."""

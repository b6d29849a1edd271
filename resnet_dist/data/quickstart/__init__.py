"""The built-in data set: pictures of rendered shapes in ten classes."""

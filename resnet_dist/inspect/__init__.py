"""A data set and the order in which a run uses it, shown."""

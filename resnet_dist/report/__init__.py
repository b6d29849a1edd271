"""The table of epochs and the curves of a run."""

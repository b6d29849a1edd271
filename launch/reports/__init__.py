"""The status of runs, for people and for programs."""

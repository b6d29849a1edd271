"""What became of runs, for people and for programs."""

"""The way from a command line to a batch script and a job of Slurm."""

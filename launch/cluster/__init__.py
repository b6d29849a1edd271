"""The cluster: the options of a job, and the commands of Slurm."""

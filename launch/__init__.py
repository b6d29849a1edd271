"""Running the training on a Slurm cluster: submit, survive, look, stop, go on.

Owns everything that knows of Slurm. `resnet_dist` does not know that it exists: what they share is
the command line of the trainer, the run folder, and exit codes.
"""

"""Training on a Slurm cluster: submit, survive, look at, stop and resume runs.

Owns everything that knows of Slurm. `resnet_dist` does not know that this package exists: they
share the command line of the trainer, the run folder, and exit codes.

    submit, resume, status, logs, cancel, preflight   the commands: python -m launch.<name>
    submission/    the way from a command line to a batch script and a job
    reports/       the status of runs, for people and for programs
    node/          the job: its work on each node, and what follows when all nodes have ended
    records/       the files of a run folder that the launcher reads and writes
    cluster/       the options of a job, and Slurm's commands

Each imports only from those below it.
"""

"""The place of this process in a job of Slurm."""

from __future__ import annotations

import os
from dataclasses import dataclass

from submitit import JobEnvironment

FIRST_PORT, NUM_PORTS = 15000, 15000
"""Ports of rendezvous: below those that Linux gives to outgoing connections."""


@dataclass(frozen=True)
class SlurmTask:
    """One task of a job; there is one per node."""

    job_id: str
    """Slurm's number of the job (of the one element of an array); `local` without Slurm."""
    restart: int
    """Times that Slurm has requeued it."""
    node: int
    hosts: tuple[str, ...]
    """Names of the job's nodes; the first holds the rendezvous."""
    host: str
    """Name of this node."""
    end_time: float | None = None
    """Time of the time limit, seconds since 1970."""

    @classmethod
    def from_environment(cls) -> SlurmTask:
        """Read Slurm's variables; `local` without them."""
        variables = os.environ
        if "SLURM_JOB_ID" not in variables or "SLURM_NODEID" not in variables:
            return cls.local("localhost")
        node = int(variables["SLURM_NODEID"])
        hosts = tuple(JobEnvironment().hostnames)
        end = variables.get("SLURM_JOB_END_TIME")
        return cls(
            job_id=variables["SLURM_JOB_ID"],
            restart=int(variables.get("SLURM_RESTART_COUNT") or 0),  # not set in the first run
            node=node,
            hosts=hosts,
            host=variables.get("SLURMD_NODENAME", hosts[node]),
            end_time=float(end) if end else None,
        )

    @classmethod
    def local(cls, host: str) -> SlurmTask:
        """The only task of a job without Slurm, on a machine that Slurm would call `host`."""
        return cls("local", 0, 0, (host,), "localhost")

    @property
    def is_local(self) -> bool:
        """Whether there is no Slurm."""
        return self.job_id == "local"

    @property
    def port(self) -> int:
        """Port of the rendezvous; differs for every job and attempt."""
        if self.is_local:
            return 0
        return FIRST_PORT + (int(self.job_id) * 17 + self.restart) % NUM_PORTS

"""Options of a job: one frozen dataclass.

Owns names, defaults and rules of the options of `python -m launch.submit`, which come from YAML
files and the command line (`launch.cluster.option_sources`). Reads no environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from launch.cluster.duration import minutes
from resnet_dist.errors import UserError, has_control_characters

CONTAINER_MOUNTS_HINT = "SRC:DST[:ro]"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Resources, limits and surroundings of a job."""

    nodes: int = 1
    """Number of nodes; each has one task, which runs torchrun."""
    gpus_per_node: int = 0
    """GPUs per node, one rank each. 0: train on CPUs."""
    ranks_per_node: int | None = None
    """Processes per node. None: one per GPU, or one where there are none."""
    time: str = "24h"
    """Time limit of one attempt: 24h, 90m, 2d12h, 30 (minutes), HH:MM:SS, D-HH or D-HH:MM:SS. The
    run itself may last longer: it is requeued at the limit."""
    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes to leave out."""
    nodelist: str | None = None
    """Nodes to take."""
    reservation: str | None = None
    """Reservation to run in."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    cpus_per_gpu: int | None = None
    """CPU cores per rank. None: what the cluster gives by default."""
    mem_gb_per_gpu: float | None = None
    """Memory per rank, GB. None: what the cluster gives by default."""
    array_parallelism: int = 256
    """Runs of a sweep at a time, at most."""
    job_name: str | None = None
    """Name in the queue. None: run.name."""
    comment: str | None = None
    """Shown by Slurm's tools."""
    sbatch_args: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch by their long names, e.g. {mail-type: FAIL, licenses: "a:1"}."""
    srun_args: list[str] = field(default_factory=list)
    """Further arguments of srun, e.g. ["--mpi=none"]."""
    setup: list[str] = field(default_factory=list)
    """Shell commands before the job, on its first node, e.g. ["module load cuda"]."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables for the job."""
    container: str | None = None
    """Image with the packages of requirements.lock; the code comes from the run folder."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis: srun's --container-image (enroot); apptainer: `apptainer exec`."""
    container_mounts: list[str] = field(default_factory=list)
    """SRC:DST[:ro] each; the run folder is mounted in any case."""
    python: str | None = None
    """Python interpreter on the nodes or in the container. None: the one that submits."""
    network_interface: str | None = None
    """Interface for gloo and NCCL, e.g. ib0. None: they choose."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which the run is asked to stop and save."""
    stop_timeout_s: float = 90.0
    """Seconds that workers may take to stop and save before torchrun is told to end them."""
    max_restarts: int = 3
    """Restarts of the workers by torchrun within one attempt."""
    max_failures: int = 5
    """Failed attempts in a row, without a step of progress, before the run is given up."""
    rendezvous_timeout_s: int = 900
    """Seconds that the nodes wait for one another at a start."""
    exclude_bad_nodes: bool = True
    """Leave out, when requeued, nodes that the preflight found bad."""
    preflight_timeout_s: float = 300.0
    """Seconds that the first node waits for the others' preflight."""
    min_free_disk_gib: float = 1.0
    """Free space that every node needs in the run folder and the cache folder, GiB."""
    min_free_shm_gib: float = 0.25
    """Free space that every node needs in /dev/shm, GiB."""

    def __post_init__(self) -> None:
        broken = []

        def require(holds: bool, name: str, rule: str, remedy: str) -> None:
            if not holds:
                value = getattr(self, name)
                broken.append(f"{option(name)} ({value!r}): {rule}; {remedy}")

        require(self.nodes >= 1, "nodes", "must be at least 1", "give a number of nodes")
        require(self.gpus_per_node >= 0, "gpus_per_node", "must not be negative", "0 means CPUs")
        for name in ("ranks_per_node", "cpus_per_gpu"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", "leave it out")
        require(
            not self.gpus_per_node or self.ranks_per_node in (None, self.gpus_per_node),
            "ranks_per_node",
            f"must equal --gpus-per-node ({self.gpus_per_node})",
            "a rank has one GPU; leave it out",
        )
        memory = self.mem_gb_per_gpu
        require(memory is None or memory > 0, "mem_gb_per_gpu", "must be positive", "leave it out")
        require(self.array_parallelism >= 1, "array_parallelism", "must be at least 1", "1 or more")
        require(self.max_restarts >= 0, "max_restarts", "must not be negative", "0 means none")
        require(self.max_failures >= 1, "max_failures", "must be at least 1", "5 is the default")
        for name in _SECONDS:
            require(getattr(self, name) > 0, name, "must be positive", "give seconds")
        for name in ("min_free_disk_gib", "min_free_shm_gib"):
            require(getattr(self, name) >= 0, name, "must not be negative", "0 means any")
        texts = {name: value for name, value in vars(self).items() if isinstance(value, str)}
        texts |= {f"sbatch_args {name}": value for name, value in self.sbatch_args.items()}
        for name, value in texts.items():
            if has_control_characters(f"{name}{value}"):  # a newline would begin a line of shell
                broken.append(
                    f"{option(name)} ({value!r}): must hold no control characters, such as a "
                    f"newline; leave them out"
                )
        for variable in self.env:
            is_name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) is not None
            require(is_name, "env", f"{variable!r} is no name of a variable", "give NAME=VALUE")
        for mount in self.container_mounts:
            require(":" in mount, "container_mounts", f"{mount} is not {CONTAINER_MOUNTS_HINT}", "")
        try:
            # At once told to stop, it would be requeued again and again without a step done.
            require(
                self.signal_delay_s < minutes(self.time) * 60,
                "signal_delay_s",
                f"must be less than --time ({self.time})",
                "give more time, or a shorter delay",
            )
        except UserError as error:
            broken.append(str(error))
        if broken:
            raise UserError("\n".join(broken))

    @property
    def num_ranks_per_node(self) -> int:
        """Processes that torchrun starts on a node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.num_ranks_per_node

    @property
    def time_min(self) -> int:
        """The time limit in minutes, rounded up."""
        return minutes(self.time)


def option(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


_SECONDS = ("signal_delay_s", "stop_timeout_s", "rendezvous_timeout_s", "preflight_timeout_s")

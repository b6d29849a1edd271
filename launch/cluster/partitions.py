"""The partitions of a cluster, and whether one of them can run a job at all."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from launch.cluster.slurm import ask
from resnet_dist.errors import UserError


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes."""

    num_nodes: int
    most_gpus: int
    """GPUs of the node that has most."""
    time_min: float
    """Time limit, minutes."""
    is_up: bool
    """Whether jobs start there now: not while it is down, drained or inactive."""


def partitions() -> dict[str, Partition]:
    """Every partition that the user can see."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--format=%R|%a|%D|%G|%l").splitlines():
        name, available, nodes, gres, limit = line.split("|")
        before = found.get(name, Partition(0, 0, 0.0, False))
        found[name] = Partition(
            before.num_nodes + _count(nodes),
            max(before.most_gpus, gpus_of(gres)),
            max(before.time_min, limit_min(limit)),
            available == "up",
        )
    return found


def _count(text: str) -> int:
    """Number of nodes; sinfo writes 2048 as 2K."""
    for power, unit in enumerate("KMG", start=1):
        if text.endswith(unit):
            return round(float(text.removesuffix(unit)) * (1 << 10 * power))
    return int(text)


def gpus_of(gres: str) -> int:
    """GPUs in a node's generic resources: `gpu:a100:8(S:0-1),nvme:1` has 8."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def limit_min(text: str) -> float:
    """Minutes of a partition's time limit (D-HH:MM:SS, MM:SS, infinite)."""
    if text in ("infinite", "UNLIMITED", "n/a"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":")]
    if len(parts) == 3 or days:
        parts += [0.0] * (3 - len(parts))
        return float(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) > 1 else 0.0)


def check_request(names: str | None, *, nodes: int, gpus_per_node: int, time_min: int) -> list[str]:
    """Check that one of the partitions can run such a job at all. Returns remarks for the user.

    `names`: with commas; None means any. Raises UserError.
    """
    known = partitions()
    asked = names.split(",") if names else list(known)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--partition ({name}): there is none of that name{hint}; there are: "
                f"{', '.join(sorted(known))}"
            )
    offers = [known[name] for name in asked if known[name].is_up]
    where = f"partition {names}" if names else "any partition"
    if not offers:
        up = [name for name, partition in sorted(known.items()) if partition.is_up]
        raise UserError(
            f"--partition ({names or 'any'}): is not up, so the job would not start; these are: "
            f"{', '.join(up) or 'none'}"
        )
    most_gpus = max(offer.most_gpus for offer in offers)
    if gpus_per_node > most_gpus:
        raise UserError(
            f"--gpus-per-node ({gpus_per_node}): no node of {where} has more than {most_gpus}; "
            f"request fewer, and more nodes"
        )
    most_nodes = max(offer.num_nodes for offer in offers)
    if nodes > most_nodes:
        raise UserError(f"--nodes ({nodes}): {where} has no more than {most_nodes}; request fewer")
    longest = max(offer.time_min for offer in offers)
    if time_min > longest:
        raise UserError(
            f"--time ({time_min} minutes): {where} allows {longest:.0f} minutes at most; request "
            f"less, the run is requeued at the limit and resumes"
        )
    down = [name for name in asked if names and not known[name].is_up]
    return [f"partition {name} is not up; another of {names} must run the job" for name in down]

"""The preflight: is every node fit for the job? Run at the start of each attempt, before data is
touched.

Each node writes down what it found, and the first one judges them all: GPUs present, healthy, and
different ones everywhere; room on the disks; the data and the run folder visible. Whether the ranks
can communicate is checked by the trainer, just before it opens the data
(`resnet_dist.faults.preflight`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.cluster.options import ClusterConfig
from launch.node.gpus import assign, can_be_listed, installed_gpus
from launch.records.attempt import Attempt
from launch.records.journal import (
    PreflightReport,
    Problem,
    read_notes,
    read_problems,
    write_problems,
)
from resnet_dist.config import CORES_PER_GPU, Config
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder
from resnet_dist.system.paths import expanded

_POLL_S = 0.5


@dataclass(frozen=True)
class Findings:
    """The findings of a node on itself."""

    problems: list[str] = field(default_factory=list)
    visible_devices: str | None = None
    """Value of the workers' CUDA_VISIBLE_DEVICES; None: leave it."""
    gpus: list[str] = field(default_factory=list)
    """Their UUIDs."""
    notes: list[str] = field(default_factory=list)
    """What makes training slow, not impossible."""


def examine(cluster: ClusterConfig, config: Config) -> Findings:
    """Examine this node."""
    problems: list[str] = []
    visible: str | None = None
    gpus: list[str] = []
    if wants_gpus(cluster, config) and can_be_listed():
        try:
            before = os.environ.get("CUDA_VISIBLE_DEVICES")
            visible, gpus = assign(installed_gpus(), before, cluster.gpus_per_node)
        except UserError as error:
            problems.append(str(error))
    needs = [
        (run_folder(config.run), cluster.min_free_disk_gib),
        (Path(config.data.cache_dir or "~/.cache/resnet_dist"), cluster.min_free_disk_gib),
        (Path("/dev/shm"), cluster.min_free_shm_gib),
    ]
    problems += [line for folder, gib in needs for line in _room(expanded(folder, "--needs"), gib)]
    problems += _data(config)
    return Findings(problems, visible, gpus, _cores(cluster, config))


def wants_gpus(cluster: ClusterConfig, config: Config) -> bool:
    """Whether the ranks train on GPUs: those that were requested, unless the user insists on CPUs.
    A node whose GPUs are gone must not train on at a hundredth of the speed."""
    return cluster.gpus_per_node > 0 and config.dist.device != "cpu"


def _cores(cluster: ClusterConfig, config: Config) -> list[str]:
    """What to say about the cores that Slurm gave to the ranks of this node."""
    cores, ranks = len(os.sched_getaffinity(0)), cluster.num_ranks_per_node
    share = max(1, cores // ranks)
    what = f"{cores} core(s) for {ranks} rank(s)"
    notes = []
    if cores < ranks or (wants_gpus(cluster, config) and share < CORES_PER_GPU):
        notes.append(f"{what}: ask for at least {CORES_PER_GPU} per GPU (cpus_per_gpu)")
    if config.data.num_workers is not None and config.data.num_workers > share:
        notes.append(
            f"{what}: data.num_workers ({config.data.num_workers}) is more than each has; leave it "
            f"out, or raise cpus_per_gpu"
        )
    return notes


def _room(folder: Path, needed_gib: float) -> list[str]:
    """Problems with the free space of a folder that may not exist yet."""
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free / 2**30
    except OSError as error:
        return [f"{folder}: cannot be examined ({error.strerror})"]
    if free >= needed_gib:
        return []
    return [f"{folder}: {free:.2f} GiB are free, {needed_gib:g} GiB are needed"]


def _data(config: Config) -> list[str]:
    """Problems with the splits: missing, unreadable or empty. Files are the trainer's part."""
    if config.data.root is None or config.data.loader == "synthetic":
        return []
    problems = []
    for split in (config.data.train_split, config.data.val_split):
        folder = expanded(config.data.root, "data.root") / split
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is None:
                    problems.append(f"{folder}: is empty")
        except OSError as error:
            problems.append(f"{folder}: cannot be listed ({error.strerror})")
    return problems


def pass_together(
    attempt: Attempt,
    findings: Findings,
    *,
    hosts: Sequence[str],
    timeout_s: float,
    is_interrupted: Callable[[], bool],
) -> tuple[Problem, ...]:
    """Report this node's findings, wait for the conclusion from all. `hosts`: the names of the
    job's nodes in Slurm, in their order. Returns the problems found; none: train.
    `is_interrupted` ends the wait early, with no problems."""
    host = hosts[attempt.node]  # a machine may call itself otherwise, and Slurm not know that name
    attempt.note("preflight", host=host, problems=findings.problems, gpus=findings.gpus)
    deadline = time.monotonic() + timeout_s * (1 if attempt.node == 0 else 2)
    while not is_interrupted():
        problems = read_problems(attempt.run_dir, attempt.name)
        if problems is not None:
            return problems
        is_late = time.monotonic() > deadline
        if attempt.node == 0:
            _, notes = read_notes(attempt.run_dir, attempt.name)
            reports = [note for note in notes if isinstance(note, PreflightReport)]
            if len(reports) == len(hosts) or is_late:
                found = conclude(reports, hosts=hosts, timeout_s=timeout_s)
                write_problems(attempt.run_dir, attempt.name, found, time=time.time())
                continue
        elif is_late:
            what = "saw no conclusion of the first node; is the run folder shared by all nodes?"
            return (Problem(host, what),)
        time.sleep(_POLL_S)
    return ()


def conclude(
    reports: Sequence[PreflightReport], *, hosts: Sequence[str], timeout_s: float
) -> list[Problem]:
    """Problems, each with its host: what nodes found, GPUs in two places, silence."""
    problems = [Problem(report.host, what) for report in reports for what in report.problems]
    seen: dict[str, str] = {}
    for report in reports:
        for uuid in report.gpus:
            if uuid in seen:
                problems.append(
                    Problem(report.host, f"its GPU {uuid} is also that of {seen[uuid]}")
                )
            seen[uuid] = report.host
    heard = {report.node for report in reports}
    for node, host in enumerate(hosts):
        if node not in heard:
            what = f"node {node} of the job reported nothing within {timeout_s:.0f} s"
            problems.append(Problem(host, what))
    return problems

"""Is every node fit for the job? Asked at the start of each attempt, before data is touched.

    python -m launch.preflight [--config C] [key=value ...] [--gpus-per-node N]

asks it of this machine alone. In a job, each node writes down what it found, and the first one
judges them all: GPUs present, well, and different ones everywhere; room on the disks; the data and
the run folder in sight. Whether the ranks can add up numbers together is asked by the trainer, just
before it opens the data (`resnet_dist.faults.preflight`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.attempt import Attempt, events, read_json, write_json
from launch.cluster import ClusterConfig, add_options, given_options, load_cluster
from launch.devices import assign, can_be_asked, installed_gpus
from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder

_POLL_S = 0.5
_VERDICT = "preflight.json"


@dataclass(frozen=True)
class Findings:
    """What a node found on itself."""

    problems: list[str] = field(default_factory=list)
    visible_devices: str | None = None
    """For the workers' CUDA_VISIBLE_DEVICES; None: leave it."""
    gpus: list[str] = field(default_factory=list)
    """Their UUIDs."""


def examine(cluster: ClusterConfig, config: Config) -> Findings:
    """Look at this node."""
    problems: list[str] = []
    visible: str | None = None
    gpus: list[str] = []
    if wants_gpus(cluster, config) and can_be_asked():
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
    problems += [line for folder, gib in needs for line in _room(folder.expanduser(), gib)]
    problems += _data(config)
    return Findings(problems, visible, gpus)


def wants_gpus(cluster: ClusterConfig, config: Config) -> bool:
    """Whether the ranks train on GPUs: those that were asked for, unless the user insists on CPUs.
    A node whose GPUs are gone must not go on at a hundredth of the speed."""
    return cluster.gpus_per_node > 0 and config.dist.device != "cpu"


def _room(folder: Path, needed_gib: float) -> list[str]:
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free / 2**30
    except OSError as error:
        return [f"{folder}: cannot be looked at ({error.strerror})"]
    if free >= needed_gib:
        return []
    return [f"{folder}: {free:.2f} GiB are free, {needed_gib:g} GiB are needed"]


def _data(config: Config) -> list[str]:
    """Whether the splits are there and can be listed; each file is the trainer's business."""
    if config.data.root is None or config.data.loader == "synthetic":
        return []
    problems = []
    for split in (config.data.train_split, config.data.val_split):
        folder = Path(config.data.root).expanduser() / split
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
) -> list[dict[str, str]]:
    """Report this node's findings, wait for the verdict over all. `hosts`: the names of the job's
    nodes in Slurm, in their order. Returns the problems found, each with its `host`; empty: go.
    `is_interrupted` ends the wait early, with no problems."""
    host = hosts[attempt.node]  # a machine may call itself otherwise, and Slurm not know that name
    attempt.note("preflight", host=host, problems=findings.problems, gpus=findings.gpus)
    deadline = time.monotonic() + timeout_s * (1 if attempt.node == 0 else 2)
    path = attempt.folder / _VERDICT
    while not is_interrupted():
        verdict = read_json(path)
        if verdict is not None:
            return list(verdict["problems"])
        if attempt.node == 0:
            reports = events(attempt.run_dir, attempt.name, "preflight")
            is_late = time.monotonic() > deadline
            if len(reports) == len(hosts) or is_late:
                problems = judge(reports, hosts=hosts, timeout_s=timeout_s)
                write_json(path, {"problems": problems, "time": time.time()})
                continue
        elif time.monotonic() > deadline:
            return [{"host": host, "what": "saw no verdict of the first node; is the run folder "
                     "shared by all nodes?"}]  # fmt: skip
        time.sleep(_POLL_S)
    return []


def judge(
    reports: Sequence[dict[str, Any]], *, hosts: Sequence[str], timeout_s: float
) -> list[dict[str, str]]:
    """What is wrong, with the host of each: what nodes found, GPUs in two places, silence."""
    problems = [
        {"host": report["host"], "what": what} for report in reports for what in report["problems"]
    ]
    seen: dict[str, str] = {}
    for report in reports:
        for uuid in report["gpus"]:
            if uuid in seen:
                what = f"its GPU {uuid} is also that of {seen[uuid]}"
                problems.append({"host": report["host"], "what": what})
            seen[uuid] = report["host"]
    heard = {int(report["node"]) for report in reports}
    for node, host in enumerate(hosts):
        if node not in heard:
            what = f"node {node} of the job said nothing within {timeout_s:.0f} s"
            problems.append({"host": host, "what": what})
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print what is wrong with it."""
    parser = argparse.ArgumentParser(prog="launch.preflight", description="Is this node fit?")
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    parser.add_argument("--cluster", action="append", default=[], metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides).config
        cluster = load_cluster(arguments.cluster, given_options(arguments))
        findings = examine(cluster, config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    host = socket.gethostname()
    for problem in findings.problems:
        print(f"{host}: {problem}")
    if not findings.problems:
        gpus = f", GPUs {', '.join(findings.gpus)}" if findings.gpus else ""
        print(f"{host}: fit{gpus}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())

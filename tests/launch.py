"""Starting real runs from tests: torchrun with several processes on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

TINY = [
    "model.name=resnet18",
    "model.width=8",
    "model.stem=cifar",
    "data.train_size=24",
    "data.eval_size=24",
    "data.eval_resize_size=28",
    "data.crop_scale=[0.3,1.0]",
    "train.precision=float32",
    "train.global_batch_size=26",
    "train.epochs=5",
    "optim.lr=0.02",
    "schedule.warmup_epochs=1",
    "eval.batch_size=8",
    "log.every_steps=1",
    "dist.timeout_s=60",
]
"""Settings of a run of 20 steps that takes seconds. Neither 3 nor 4 divides the global batch."""

CURVES = ("train/loss", "train/top1", "train/top5", "train/lr", "train/grad_norm")
EXACT = (*CURVES, "val/loss", "val/top1", "val/top5", "val/ema_loss", "epoch")
"""Recorded values that are functions of (config, seed, step); the others are times."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    codes: list[int]
    """Exit code of each rank; negative: the signal that killed it."""
    output: str
    """What all ranks printed."""


def torchrun(nproc: int, overrides: list[str], *, module: str = "resnet_dist.train") -> list[str]:
    """The command line of a run under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={nproc}", "-m", module, *overrides]


def train(
    nproc: int,
    root: Path,
    run_dir: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> Ended:
    """Run the tiny training on `nproc` processes to its end, with the variables torchrun sets.

    As torchrun does, ends the others when one fails.
    """
    context = multiprocessing.get_context("forkserver")
    arguments = [*TINY, f"data.root={root}", f"run.dir={run_dir}", *overrides]
    port, log = free_port(), run_dir.with_name(f"{run_dir.name}.log")
    log.unlink(missing_ok=True)
    ranks = []
    for rank in range(nproc):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": nproc,
            "LOCAL_WORLD_SIZE": nproc,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        merged = {name: str(value) for name, value in variables.items()} | dict(environment or {})
        ranks.append(context.Process(target=_rank, args=(arguments, merged, log)))
        ranks[-1].start()
    deadline = time.monotonic() + 200
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + 10)
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
        rank.join()
    ended = Ended([rank.exitcode or 0 for rank in ranks], log.read_text())
    if check:
        assert ended.codes == [0] * nproc, ended.output[-6000:]
    return ended


def share_fork_server() -> None:
    """In a process that the fork server made: start others from the same server, which has
    imported everything, instead of one more. Saves each rank of a test the seconds of importing."""
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    assert address is not None
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    forkserver.ensure_running = lambda: None


def _rank(arguments: list[str], variables: dict[str, str], log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    share_fork_server()
    os.environ.update(variables)
    # Interfaces are looked up by host name otherwise, which not every machine can resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    from resnet_dist.train import main

    sys.exit(main(arguments))


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The run's scalar records, as they are in the file."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def exact_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records without what depends on the clock."""
    return [
        {key: value for key, value in record.items() if key == "step" or key in EXACT}
        for record in records(run_dir)
    ]


def losses(run_dir: Path) -> list[float]:
    """The training loss of each record, in order."""
    return [record["train/loss"] for record in records(run_dir) if "train/loss" in record]


def newest_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The content of the newest checkpoint."""
    path = max((run_dir / "checkpoints").glob("step_*.pt"))
    return dict(torch.load(path, weights_only=True))


def assert_same_state(first: Any, second: Any, path: str = "") -> None:
    """Both trees of tensors and plain values are equal bit for bit."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same_state(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for position, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{path}/{position}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path


STATE = ("step", "model", "optimizer", "scaler", "average", "meter", "best")


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs ended with the same state and wrote the same records, bit for bit."""
    one, two = newest_checkpoint(first), newest_checkpoint(second)
    for key in STATE:
        assert_same_state(one[key], two[key], key)
    assert exact_records(first) == exact_records(second)

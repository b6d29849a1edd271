"""Starting real runs from tests: torchrun with several processes on the CPU."""

from __future__ import annotations

import contextlib
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

from resnet_dist.selftest.comparison import differences
from resnet_dist.selftest.suite import SMALL_NETWORK

TINY = [
    *SMALL_NETWORK,
    "augment.crop_scale=[0.3,1.0]",
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


class Ranks:
    """The processes of one start of the training, with the variables that torchrun sets."""

    def __init__(
        self, nproc: int, arguments: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        """What they print is appended to `log`; the first lines are `pid RANK PID`."""
        context = multiprocessing.get_context("forkserver")
        port = free_port()
        self.processes = []
        for rank in range(nproc):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": nproc,
                "LOCAL_WORLD_SIZE": nproc,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            merged = {name: str(value) for name, value in variables.items()} | dict(environment)
            process = context.Process(target=_rank, args=(arguments, merged, log))
            process.start()
            self.processes.append(process)
        self._grace = 10.0
        self._failed_at: float | None = None

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that runs."""
        alive = enumerate(self.processes)
        return {rank: process.pid for rank, process in alive if process.is_alive() and process.pid}

    def kill_agent(self) -> None:
        """Stands for the death of the agent: its ranks die with it."""
        for process in self.processes:
            process.kill()

    def is_running(self) -> bool:
        """Whether any rank runs. As torchrun does, ends the others when one fails (a bit later)."""
        if self._failed_at is None and any(process.exitcode for process in self.processes):
            self._failed_at = time.monotonic()
        if self._failed_at is not None and time.monotonic() - self._failed_at > self._grace:
            self.kill_agent()
        return any(process.is_alive() for process in self.processes)

    def codes(self) -> list[int]:
        """Exit codes; ends what still runs."""
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode or 0 for process in self.processes]

    def finish(self) -> bool:
        """End what still runs; whether all had ended well."""
        return not any(self.codes())

    def end_others_at_once(self) -> Ranks:
        """When one fails, end the others without waiting for what they have to say."""
        self._grace = 0.5
        return self


def train(
    nproc: int,
    root: Path,
    run_dir: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
    log: Path | None = None,
) -> Ended:
    """Run the tiny training on `nproc` processes to its end.

    What they print goes to `log`, by default beside the run folder.
    """
    log = log or run_dir.with_name(f"{run_dir.name}.log")
    log.unlink(missing_ok=True)
    arguments = [*TINY, f"data.root={root}", f"run.dir={run_dir}", *overrides]
    started = Ranks(nproc, arguments, environment or {}, log)
    deadline = time.monotonic() + 200
    while started.is_running() and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = Ended(started.codes(), log.read_text())
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
    print(f"pid {variables['RANK']} {os.getpid()}", flush=True)
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


def records_so_far(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run that is being written; a last line in the making is left out."""
    with contextlib.suppress(FileNotFoundError):
        whole = (run_dir / "metrics.jsonl").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]
    return []


def losses(run_dir: Path) -> list[float]:
    """The training loss of each record, in order."""
    return [record["train/loss"] for record in records(run_dir) if "train/loss" in record]


def newest_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The content of the newest checkpoint."""
    path = max((run_dir / "checkpoints").glob("step_*.pt"))
    return dict(torch.load(path, weights_only=True))


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs ended with the same state and wrote the same records, bit for bit."""
    assert differences(first, second) == []

"""The ranks of this machine, started by torchrun's own agent, and how they ended in one exit code.

torchrun as a command returns 1 whatever its workers returned, after dozens of lines. Here the code
of the ranks is the code, and what the ranks said is the last that is said. Imports torch when
called.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from resnet_dist.errors import GuardError, UserError
from resnet_dist.system.signals import (
    AGENTS_SIGNALS_VARIABLE,
    signals_to_handle,
    stopped_exit_code,
)

_FORWARDED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that stop the training but would kill the agent."""


def count_gpus() -> int:
    """Visible GPUs; imports torch."""
    import torch

    return torch.cuda.device_count()


def default_nproc(device: str) -> int:
    """Ranks to start here by default, for a value of `dist.device`: one per GPU, else one."""
    return 1 if device == "cpu" else max(1, count_gpus())


def training_command(nproc: int, arguments: Sequence[str]) -> list[str]:
    """A training as `nproc` ranks on this machine, to be started as a process of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, f"--nproc_per_node={nproc}", "-m", "resnet_dist.train", *arguments]


def run_ranks(nproc: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` as `nproc` ranks on this machine. Returns the exit code.

    0: all ended well; that of the first rank that ended otherwise, if it is one of ours (2, 70 or
    75); 75 too where a signal to this process stopped them; else 1.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, without its warning
    logging.disable(logging.CRITICAL)  # the agent's reports of what the ranks have said themselves
    for number in _FORWARDED:
        signal.signal(number, _forward)
    # Whatever this was started to ignore, the agent would handle.
    handled = ",".join(one.name for one in signals_to_handle() if one not in _FORWARDED)
    os.environ[AGENTS_SIGNALS_VARIABLE] = handled
    command = ["--standalone", f"--nproc-per-node={nproc}"]
    if "--signals-to-handle" in get_args_parser()._option_string_actions:
        command.append(f"--signals-to-handle={handled}")
    command += ["-m", module, *arguments]
    try:
        run(parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        # The agent ends the others with SIGTERM, perhaps within the same second.
        rank, failure = min(
            error.failures.items(),
            key=lambda each: (each[1].exitcode == -signal.SIGTERM, each[1].timestamp),
        )
        if failure.exitcode in (UserError.exit_code, GuardError.exit_code, stopped_exit_code()):
            return int(failure.exitcode)
        print(f"error: rank {rank} ended {_in_words(failure.exitcode)}", file=sys.stderr)
        return 1
    except SignalException:
        return stopped_exit_code()
    return 0


def _forward(number: int, frame: FrameType | None) -> None:
    del frame
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


def _in_words(exit_code: int) -> str:
    if exit_code < 0:
        return f"by signal {signal.Signals(-exit_code).name}"
    return f"with exit code {exit_code}; its own messages are above"

"""Entry point of a training: of one rank (`main`), or of all ranks of this machine
(`start_and_train`).

    torchrun --nproc_per_node N -m resnet_dist.train [--config C] [key=value ...]
    resnet-dist train [--nproc N] [--config C] [key=value ...]

Reads and checks the settings before torch is imported, so that a wrong one is answered at once;
then hands them to `resnet_dist.trainer`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from resnet_dist.config.command_line import Arguments, parse_arguments
from resnet_dist.config.load import Resolved, load_config
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError, report_error
from resnet_dist.report import preview
from resnet_dist.run.folder import SHUTDOWN_VARIABLE, run_folder, shutdown_timeout_s
from resnet_dist.system.output import keep_output_safe
from resnet_dist.system.ranks import is_first, is_started_by_torchrun, launched_ranks
from resnet_dist.system.signals import stop_at_once_on_signals
from resnet_dist.system.torchrun import default_nproc, run_ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Train as one rank, or alone. Returns the exit code.

    0: finished, or `train.max_steps` is reached; 2: bad input, and 70: a guard stopped the run
    (an error message on stderr each); 75 (or RESNET_DIST_STOPPED_EXIT_CODE): stopped by a signal,
    to be continued.
    """
    return _start(argv, _as_one_rank, prog="resnet_dist.train")


def start_and_train(argv: Sequence[str]) -> int:
    """Train as `--nproc` processes of this machine, by default one per GPU, else one.

    Returns the exit code, as `main`.
    """
    if is_started_by_torchrun():
        return main(argv)
    return _start(argv, _as_ranks_of_this_machine, prog="resnet-dist train")


def _start(
    argv: Sequence[str] | None,
    choose: Callable[[Arguments, Resolved], Callable[[], int]],
    *,
    prog: str,
) -> int:
    """Check the settings, then do what `choose` says. Bad input is answered once, by rank 0."""
    keep_output_safe()
    stop_at_once_on_signals()
    try:
        arguments = parse_arguments(argv, prog=prog, description="Train a ResNet.")
        answered = preview.answer(arguments)  # --print-config
        if answered is not None:
            return answered
        start = choose(arguments, load_config(arguments.files, arguments.overrides))
    except UserError as error:  # the same on every rank, so one speaks
        return report_error(error, speaks=is_first())
    return start()


def _as_one_rank(arguments: Arguments, resolved: Resolved) -> Callable[[], int]:
    world_size = launched_ranks().size
    if arguments.nproc not in (None, world_size):
        raise UserError(
            f"--nproc ({arguments.nproc}): `python -m resnet_dist.train` starts no processes; "
            f"use `resnet-dist train --nproc {arguments.nproc}`, or torchrun"
        )
    choose_batch_split(resolved.config.train, world_size)
    return partial(_train, resolved)


def _as_ranks_of_this_machine(arguments: Arguments, resolved: Resolved) -> Callable[[], int]:
    nproc = arguments.nproc or default_nproc(resolved.config.dist.device)
    choose_batch_split(resolved.config.train, nproc)
    if nproc == 1:
        return partial(_train, resolved)
    os.environ.setdefault(
        SHUTDOWN_VARIABLE, str(shutdown_timeout_s(run_folder(resolved.config.run)))
    )
    return partial(run_ranks, nproc, "resnet_dist.train", arguments.words_of_a_rank)


def _train(resolved: Resolved) -> int:
    from resnet_dist.trainer import train  # only now: importing torch takes seconds

    return train(resolved)


if __name__ == "__main__":
    sys.exit(main())

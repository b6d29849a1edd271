"""Entry point: `torchrun --nproc_per_node N -m resnet_dist.train [--config C] [key=value ...]`.

Reads and checks the settings before torch is imported, so that a wrong one is answered at once;
then hands them to `resnet_dist.trainer`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from resnet_dist import preview
from resnet_dist.config.load import load_config, parse_arguments
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError, report_error
from resnet_dist.system.ranks import launched_ranks
from resnet_dist.system.signals import stop_at_once_on_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit code.

    0: finished, or `train.max_steps` is reached; 2: bad input, and 70: a guard stopped the run
    (an error message on stderr each); 75 (or RESNET_DIST_STOPPED_EXIT_CODE): stopped by a signal,
    to be continued.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    stop_at_once_on_signals()
    try:
        arguments = parse_arguments(argv, prog="resnet_dist.train", description="Train a ResNet.")
        answered = preview.answer(arguments)  # --help KEY, --print-config
        if answered is not None:
            return answered
        resolved = load_config(arguments.files, arguments.overrides)
        choose_batch_split(resolved.config.train, launched_ranks().size)
    except UserError as error:  # the same on every rank, so one speaks
        return report_error(error, speaks=is_main)

    # Only now: importing torch takes seconds.
    from resnet_dist.trainer import train

    return train(resolved)


if __name__ == "__main__":
    sys.exit(main())

"""Is this machine fit to train, and are these machines fit to train together?

    resnet-dist doctor [--config C] [--nproc N] [key=value ...]         # this machine
    torchrun --nnodes ... -m resnet_dist.doctor [--config C] [...]      # all of them
    srun --ntasks-per-node=1 torchrun ... -m resnet_dist.doctor [...]   # a job's nodes

Takes the settings of the run that you plan, trains nothing, and leaves nothing behind. Prints a
table: ok, warn (it works, perhaps slowly) or FAIL, with what to do. Takes less than a minute.
Exit codes: 0 fit, 1 a check failed, 2 bad settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError, report_error
from resnet_dist.system.ranks import is_first, is_started_by_torchrun
from resnet_dist.system.torchrun import default_nproc, run_ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Examine and print. Returns the exit code."""
    try:
        arguments = parse_arguments(argv, prog="resnet_dist.doctor", description=__doc__ or "")
        config = load_config(arguments.files, arguments.overrides).config
    except UserError as error:
        return report_error(error, speaks=is_first())
    if not is_started_by_torchrun():
        nproc = arguments.nproc or default_nproc(config.dist.device)
        if nproc > 1:
            return run_ranks(nproc, "resnet_dist.doctor", arguments.words_of_a_rank)
    from resnet_dist.doctor.examine import examine  # only now: importing torch takes seconds

    return examine(config)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m resnet_dist.bench [--config C] [key=value ...]`: what limits the speed here?

Measures the loader alone, the training step alone (on a fixed batch in memory), both together, and
with several ranks the sum of the gradients alone, in turn for several rounds; says what the step's
time goes into, and in words what the bottleneck is: loader, step, network, or one slow rank. Runs
under torchrun too; then it gives the sum over the ranks as rank 0 sees it.

With --modes: which performance settings make the step fastest here
(`resnet_dist/performance/modes.py`)?
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError, report_error
from resnet_dist.system.ranks import is_first, is_started_by_torchrun
from resnet_dist.system.torchrun import run_ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table. Returns 0, or 2 for bad input with an error message on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    compares = "--modes" in given
    given = [argument for argument in given if argument != "--modes"]
    try:
        arguments = parse_arguments(given, prog="resnet_dist.bench", description=__doc__ or "")
        config = load_config(arguments.files, arguments.overrides).config
        nproc = arguments.nproc or 1
        if nproc > 1 and not is_started_by_torchrun():
            words = [*arguments.words_of_a_rank, *(["--modes"] if compares else [])]
            return run_ranks(nproc, "resnet_dist.bench", words)

        # Only now: importing torch takes seconds.
        from resnet_dist.bench.compare import sync_compare_modes
        from resnet_dist.bench.measure import report, sync_measure
        from resnet_dist.world import start_process_group, stop_process_group

        world = start_process_group(config.dist)
        if compares:
            table = sync_compare_modes(arguments, config, world)
        else:
            table = report(config, world, sync_measure(config, world))
    except UserError as error:
        return report_error(error, speaks=is_first())
    if world.is_main:
        print(table)
    stop_process_group(world)
    return 0


if __name__ == "__main__":
    sys.exit(main())

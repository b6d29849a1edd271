"""`python -m resnet_dist.bench [--config C] [key=value ...]`: what limits the speed here?

Measures the loader alone, the training step alone (on a fixed batch in memory), and both together,
in turn for several rounds, and says in words which of them is the bottleneck. Runs under torchrun
too; then it gives the sum over the ranks as rank 0 sees it.

With --modes: which performance settings make the step fastest here
(`resnet_dist/performance/modes.py`)?
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError, report_error


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table. Returns 0, or 2 for bad input with an error message on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    compares = "--modes" in given
    given = [argument for argument in given if argument != "--modes"]
    try:
        arguments = parse_arguments(given, prog="resnet_dist.bench", description=__doc__ or "")
        config = load_config(arguments.files, arguments.overrides).config

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
        return report_error(error, speaks=True)
    if world.is_main:
        print(table)
    stop_process_group(world)
    return 0


if __name__ == "__main__":
    sys.exit(main())

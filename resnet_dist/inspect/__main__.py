"""`python -m resnet_dist.inspect DIR|CONFIG [key=value ...]`: a data set and its order.

Prints the classes and sizes of both splits, writes the first augmented images as a PNG, and replays
the order of the samples: for the ranks and restarts given, each is used once. Trains nothing.

    python -m resnet_dist.inspect /data/imagenet
    python -m resnet_dist.inspect resnet50 data.root=/data/imagenet --start 0:64 --start 2000:48
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.config.load import load_config, shipped_configs
from resnet_dist.errors import UserError, printable, report_error

if TYPE_CHECKING:
    from resnet_dist.config import Config

_FOLDERS_CONFIG = "resnet50"


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect and print. Returns 0; 1: a sample is not used as often as it should be; 2: bad input,
    with an error message on stderr."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        return _inspect(arguments, _load(arguments.what, arguments.overrides))
    except UserError as error:
        return report_error(error, speaks=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet_dist.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="DIR|CONFIG", help="folder of a data set, or a config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--start",
        action="append",
        type=_step_and_ranks,
        metavar="STEP:RANKS",
        help="from this step on so many ranks; several are restarts of one run (default: 8 ranks, "
        "then 3, then 5, a third of the epoch each)",
    )
    parser.add_argument("--epochs", type=int, default=1, help="epochs to replay (default: 1)")
    parser.add_argument("--grid", type=Path, default=Path("inspect.png"), help="PNG to write")
    return parser


def _step_and_ranks(text: str) -> tuple[int, int]:
    step, separator, ranks = text.partition(":")
    if not separator or not step.isdigit() or not ranks.isdigit() or int(ranks) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give STEP:RANKS, for example 2000:48")
    return int(step), int(ranks)


def _load(what: str, given: Sequence[str]) -> Config:
    """The config. A folder is inspected as the ImageNet recipes would use it."""
    overrides = [*given, "data.loader=torch"]
    if Path(what).is_dir():
        return load_config([_FOLDERS_CONFIG], [f"data.root={what}", *overrides]).config
    if not Path(what).is_file() and what not in shipped_configs():
        raise UserError(f"DIR|CONFIG ({what}): no such folder, file or shipped config")
    return load_config([what], overrides).config


def _inspect(arguments: argparse.Namespace, config: Config) -> int:
    # Only now: importing torch takes seconds.
    from resnet_dist.inspect.datasets import describe, open_datasets
    from resnet_dist.inspect.grid import write_grid
    from resnet_dist.inspect.order import check_order, choose_starts

    is_folder = Path(arguments.what).is_dir()
    config, datasets = open_datasets(config, shrinks_batch=is_folder)
    print("\n".join(printable(line) for line in describe(datasets)))
    write_grid(config, datasets, arguments.grid)
    print(printable(f"first augmented images: {arguments.grid}"))
    starts = choose_starts(config, len(datasets.train), arguments.start)
    return check_order(config, datasets, starts, arguments.epochs)


if __name__ == "__main__":
    sys.exit(main())

"""`resnet-dist evaluate WEIGHTS|RUN ... [--config C] [key=value ...]`: accuracy of any weights.

    resnet-dist evaluate runs/resnet50 data.root=/data/imagenet
    resnet-dist evaluate a.pth b.safetensors data.root=/data/imagenet data.eval_size=288 \\
        data.eval_resize_size=320

WEIGHTS: a checkpoint, a state dict of torchvision or timm (.pt, .pth, .safetensors), a run folder
(its best checkpoint), or torchvision:resnet50:IMAGENET1K_V2. Needs val/ alone; its classes, or some
of them, are matched by name. Writes nothing without --out. Runs under torchrun too, with the same
result for any number of ranks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.errors import UserError, report_error
from resnet_dist.system.output import keep_output_safe
from resnet_dist.system.ranks import is_first, is_started_by_torchrun

if TYPE_CHECKING:
    from resnet_dist.evaluate.rows import Row


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print. Returns 0, or 2 for bad input with an error message on stderr."""
    keep_output_safe()
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_intermixed_args(given)
    words = arguments.words
    sources = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if word not in sources]
    try:
        if not sources:
            raise UserError("WEIGHTS: are missing; give a checkpoint, a state dict or a run folder")
        if arguments.nproc > 1 and not is_started_by_torchrun():
            from resnet_dist.system.torchrun import run_ranks

            return run_ranks(arguments.nproc, "resnet_dist.evaluate", _for_ranks(arguments))
        # Only now: importing torch takes seconds.
        from resnet_dist.evaluate.sources import sync_evaluate_sources

        rows = sync_evaluate_sources(sources, overrides, arguments)
        if rows is not None:
            _show(rows, arguments)
    except UserError as error:
        return report_error(error, speaks=is_first())
    return 0


def _for_ranks(arguments: argparse.Namespace) -> list[str]:
    """The command line without --nproc."""
    options = {"config": arguments.config, "format": [arguments.format], "which": [arguments.which]}
    options |= {"out": [arguments.out], "classes": [arguments.classes]}
    given = [f"--{key}={value}" for key, each in options.items() for value in each if value]
    return [*given, *arguments.words]


def _show(rows: list[Row], arguments: argparse.Namespace) -> None:
    from resnet_dist.evaluate.rows import as_csv, table, write_files

    match arguments.format:
        case "json":
            print(json.dumps([row.as_json() for row in rows], indent=1))
        case "csv":
            as_csv(rows, sys.stdout)
        case _:
            print(table(rows))
    sys.stdout.flush()
    if arguments.out is not None:
        try:
            paths = write_files(rows, arguments.out)
        except OSError as error:
            raise UserError(
                f"--out ({arguments.out}): cannot be written ({error.strerror or error}); give "
                f"another folder"
            ) from None
        print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-dist evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="WEIGHTS|key=value", help="what to evaluate, and settings")
    add("--config", action="append", default=[], metavar="FILE", help="settings, as for train")
    add("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    add("--out", type=Path, metavar="DIR", help="also write JSON, CSV and a picture there")
    add(
        "--which",
        choices=("both", "model", "ema"),
        default="both",
        help="the weights, their moving average, or what is there (default)",
    )
    add("--classes", type=Path, metavar="FILE", help="names of the outputs, one a line")
    add("--nproc", type=_count, default=1, metavar="N", help="processes to start (default: 1)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""A run's table of epochs and curves, or several runs side by side.

    resnet-dist report runs/a              # the table; writes curves.png into the folder
    resnet-dist report runs/a --html       # also report.html into the folder
    resnet-dist report runs/a runs/b       # compares; writes report.html and report.png here
    resnet-dist report runs/a --watch      # a live view of a run that trains
    resnet-dist report runs/a --export csv # or trackio, mlflow, wandb (offline)

Reads what is in the run folders alone, so it works on runs that are still training, or were copied
from elsewhere. The HTML file needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from resnet_dist.errors import UserError, report_error
from resnet_dist.report.comparison import comparison_lines
from resnet_dist.report.curves import write_curves
from resnet_dist.report.export import EXPORTS
from resnet_dist.report.facts import RunFacts, named_apart, read_run
from resnet_dist.report.overlay import draw
from resnet_dist.report.page import band_lines, page
from resnet_dist.report.receipt import receipt_lines
from resnet_dist.report.table import epoch_table, final_lines
from resnet_dist.report.watch import watch
from resnet_dist.system.files import replace_file

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Print, and write pictures. Returns 0, or 2 for a folder without metrics."""
    parser = argparse.ArgumentParser(
        prog="resnet_dist.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, such as runs/quickstart"
    )
    parser.add_argument("--html", action="store_true", help="also write report.html (one run)")
    parser.add_argument("--watch", action="store_true", help="draw it until it ends (one run)")
    parser.add_argument("--export", choices=list(EXPORTS), help="records for other programs")
    parser.add_argument("--out", type=Path, help="folder for the files (default: see above)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.watch:
            if len(arguments.runs) > 1:
                raise UserError("--watch: takes one run; start it once for each")
            watch(arguments.runs[0])
            return 0
        runs = [read_run(folder) for folder in arguments.runs]
        if arguments.export is not None:
            _export(runs, arguments)
        elif len(runs) == 1:
            _report_one(runs[0], arguments)
        else:
            _compare(runs, arguments.out or Path())
    except UserError as error:
        return report_error(error, speaks=True)
    return 0


def _export(runs: Sequence[RunFacts], arguments: argparse.Namespace) -> None:
    for run in runs:
        folder = arguments.out or run.folder
        write = partial(EXPORTS[arguments.export], run, folder)
        print(f"{run.name}: {_or_say(folder / 'metrics', write)}")


def _report_one(run: RunFacts, arguments: argparse.Namespace) -> None:
    folder = arguments.out or run.folder
    curves = folder / "curves.png"
    _or_say(curves, lambda: write_curves(run.records, curves, title=run.name))
    print(epoch_table(run.records))
    lines = [*final_lines(run.records, is_finished=run.is_finished), *band_lines(run)]
    print("\n".join([*lines, f"curves: {curves}", *receipt_lines(run)]))
    if arguments.html:
        print(f"report: {_write_page([run], folder)}")


def _compare(runs: Sequence[RunFacts], folder: Path) -> None:
    picture = folder / "report.png"

    def save(file: BinaryIO) -> None:
        draw(runs, named_apart(runs)).savefig(file, format="png", dpi=110)

    _or_say(picture, lambda: replace_file(picture, save))
    written = _write_page(runs, folder)
    print("\n".join(comparison_lines(runs)))
    for run, name in zip(runs, named_apart(runs), strict=True):
        said = band_lines(run)
        if said:
            print("\n".join([f"{name}: {said[0]}", *said[1:]]))
    print(f"report: {written}, {picture}")


def _write_page(runs: Sequence[RunFacts], folder: Path) -> Path:
    path = folder / "report.html"
    text = page(runs).encode()
    _or_say(path, lambda: replace_file(path, lambda file: file.write(text)))
    return path


def _or_say(path: Path, write: Callable[[], T]) -> T:
    """Write a file; what `write` returns. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room, mend its "
            f"permissions, or give another folder with --out"
        ) from error


if __name__ == "__main__":
    sys.exit(main())

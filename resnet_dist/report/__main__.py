"""`python -m resnet_dist.report RUN_DIR`: the table of epochs and the curves of a run.

Reads metrics.jsonl alone, so it works on a run that is still training, or was copied from
elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_dist.errors import UserError, report_error
from resnet_dist.metrics import jsonl
from resnet_dist.metrics.jsonl import Record
from resnet_dist.report import bands
from resnet_dist.report.curves import write_curves
from resnet_dist.report.table import epoch_table, final_lines
from resnet_dist.run.outcome import Outcome
from resnet_dist.system.json_files import read_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write curves.png. Returns 0, or 2 for a folder without metrics."""
    parser = argparse.ArgumentParser(prog="resnet_dist.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as runs/quickstart")
    run_dir = parser.parse_args(argv).run_dir
    try:
        records = _read_records(run_dir / "metrics.jsonl")
        curves = _write_curves(records, run_dir)
        band = _band_lines(records, run_dir)
    except UserError as error:
        return report_error(error, speaks=True)
    print(epoch_table(records))
    print("\n".join([*final_lines(records, is_finished=_is_finished(run_dir)), *band]))
    print(f"curves: {curves}")
    return 0


def _band_lines(records: list[Record], run_dir: Path) -> list[str]:
    """Whether the run lies where runs of its recipe lie; nothing if there is no band for it."""
    facts = bands.facts_of(run_dir)
    found = None if facts is None else bands.band_of(*facts)
    return [] if found is None else bands.verdict(records, *found)


def _is_finished(run_dir: Path) -> bool:
    """Whether the last start finished; a copy of the records alone counts as finished."""
    ends = read_lines(run_dir / "ends.jsonl")
    if not ends:
        return not (run_dir / "starts.jsonl").exists()
    return ends[-1].get("outcome") in (Outcome.FINISHED, Outcome.REACHED)


def _read_records(path: Path) -> list[Record]:
    try:
        records = jsonl.read_records(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the folder of a run, such as "
            f"runs/quickstart"
        ) from error
    if not records:
        raise UserError(f"{path}: holds no record yet; try again later")
    return records


def _write_curves(records: list[Record], run_dir: Path) -> Path:
    path = run_dir / "curves.png"
    try:
        write_curves(records, path, title=run_dir.resolve().name)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or mend its "
            f"permissions"
        ) from error
    return path


if __name__ == "__main__":
    sys.exit(main())

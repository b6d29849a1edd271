"""`python -m launch.logs RUN [-f] [-n LINES] [--node K]`: what a run's tasks printed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.records.submissions import expand, last_submission, submissions
from launch.reports.follow import Tail
from launch.reports.text import print_error
from resnet_dist.errors import UserError
from resnet_dist.system.paths import expanded


def main(argv: Sequence[str] | None = None) -> int:
    """Print the end of the log. Returns 0, or 2 if there is none."""
    parser = argparse.ArgumentParser(prog="launch.logs", description="Logs of a submitted run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print what comes, until Ctrl-C"
    )
    parser.add_argument("-n", "--lines", type=int, default=50, help="last lines to show (50)")
    parser.add_argument("--node", type=int, default=0, help="number of the node in the job (0)")
    arguments = parser.parse_args(argv)
    try:
        path = find_log(expanded(arguments.run, "RUN"), arguments.node)
    except UserError as error:
        return print_error(error)
    print(f"==> {path} <==", flush=True)
    tail = Tail(path)
    tail.skip_to_last(arguments.lines)
    tail.show_new()
    try:
        while arguments.follow:
            time.sleep(1.0)
            tail.show_new()
    except KeyboardInterrupt:
        pass
    return 0


def find_log(run_dir: Path, node: int) -> Path:
    """The log of the last submission that has one. Raises UserError."""
    expand(run_dir)  # raises if it is no run
    for submission in reversed(submissions(run_dir)):
        path = submission.log(node)
        if path.exists():
            return path
    if last_submission(run_dir) is None:
        raise UserError(
            f"run ({run_dir}): was never submitted with launch.submit, so no log of it is here; "
            f"`resnet-dist report {run_dir}` shows its records"
        )
    raise UserError(
        f"run ({run_dir}): node {node} has printed nothing yet; see `python -m launch.status "
        f"{run_dir}`"
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m launch.status [RUN ...]`: the state of runs, from Slurm and from their folders.

Without arguments: all runs below `runs/`. One run is shown with its attempts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from launch.records.submissions import find_runs
from launch.reports.text import as_json, details, print_error, table
from resnet_dist.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs. Returns 0, or 2 if a folder is none."""
    parser = argparse.ArgumentParser(prog="launch.status", description="State of submitted runs.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: runs/*)")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="show again and again"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    try:
        while True:
            folders = find_runs(arguments.runs)
            if arguments.json:
                print(json.dumps([as_json(folder) for folder in folders], indent=1))
            else:
                text = details(folders[0]) if len(folders) == 1 else table(folders)
                if arguments.watch:
                    print("\033[2J\033[H" if sys.stdout.isatty() else "", end="")
                    text = f"{time.strftime('%H:%M:%S')}\n{text}"
                print(text, flush=True)
            if arguments.watch is None:
                return 0
            time.sleep(arguments.watch)
    except UserError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

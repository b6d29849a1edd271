"""`python -m resnet_dist.selftest --dir FOLDER`: is a resumed run the run, on this file system?

Trains a small network on synthetic images, once uninterrupted, and then again while it is killed
with SIGKILL over and over: at every named failpoint, at random moments, one rank, all ranks, or the
agent. Each time it is started again. In the end weights, optimizer, moving average and every
record must be equal to those of the uninterrupted run, bit for bit. Prints a table and exits with 0
if they are, 1 if not.

Use a folder on the file system that your runs will use. Everything it writes is below
FOLDER/selftest, which is removed first, and again at the end if all is well.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError, report_error

if TYPE_CHECKING:
    from resnet_dist.selftest.faults import Fault
    from resnet_dist.selftest.suite import Result, Suite


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite and print a table. Returns 0, 1 if the runs differ, or 2 for bad input."""
    args = _parser().parse_args(argv)
    folder = args.dir / "selftest"
    try:
        return _run(args, folder)
    except OSError as error:
        return report_error(
            UserError(f"--dir ({folder}): cannot be used ({error.strerror or error})"), speaks=True
        )
    except UserError as error:
        return report_error(error, speaks=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet_dist.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, required=True, help="a folder where runs will lie")
    parser.add_argument("--kills", type=int, default=30, help="how many times to kill it")
    parser.add_argument("--nproc", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=6, help="of one run; 10 steps each")
    parser.add_argument("--seed", type=int, default=None, help="of the random faults")
    parser.add_argument("--keep", action="store_true", help="leave what it wrote")
    parser.add_argument("overrides", nargs="*", help="key=value, such as data.loader=dali")
    return parser


def _run(args: argparse.Namespace, folder: Path) -> int:
    # Only now: importing torch takes seconds.
    from resnet_dist.selftest.faults import plan_faults
    from resnet_dist.selftest.starts import Started, Torchrun
    from resnet_dist.selftest.suite import SETTINGS, Suite

    load_config([], [*SETTINGS, *args.overrides])  # raises here what each start would say in a log

    def launch(arguments: list[str], environment: dict[str, str], log: Path) -> Started:
        return Torchrun(args.nproc, arguments, environment, log)

    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    suite = Suite(folder, launch, epochs=args.epochs, overrides=args.overrides)
    print(f"{args.kills} kills, seed {seed}, in {folder}; uninterrupted run first", flush=True)
    problems = _report(suite, plan_faults(args.kills, nproc=args.nproc, seed=seed))
    if problems:
        print("\n".join(["NOT EQUAL:", *problems]))
        return 1
    if not args.keep:
        shutil.rmtree(folder)
    print("equal bit for bit: weights, optimizer, moving average, counts and records")
    return 0


def _report(suite: Suite, faults: Sequence[Fault]) -> list[str]:
    """Run everything and print one line per fault. Returns what differs."""
    suite.write_images()
    suite.run_uninterrupted()
    print(f"{'kill':>5}  {'where':<34}{'who':<11}{'pass':>4}{'steps before, after':>22}{'s':>7}")
    problems: list[str] = []
    number = 0
    for outcome in suite.run_killed(faults):
        if isinstance(outcome, list):
            problems += outcome
            print("       run finished: " + ("; ".join(outcome) or "equal bit for bit"), flush=True)
        else:
            number += 1
            print(f"{number:>5}  {_line(outcome)}", flush=True)
    return problems


def _line(result: Result) -> str:
    fault, steps = result.fault, f"{result.before:>4} -> {result.after:<4}"
    return f"{fault.what:<34}{fault.victim:<11}{fault.count:>4}{steps:>22}{result.seconds:>7.1f}"


if __name__ == "__main__":
    sys.exit(main())

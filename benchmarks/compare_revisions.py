"""Our loaders in two checkouts, in turn: the old revision, the new one, the old one again, ...

    git worktree add ../old REVISION
    python benchmarks/compare_revisions.py --old ../old --images DIR [--rounds 7] [--seconds 6]

Each turn is a fresh process that runs benchmarks/loaders.py of its own checkout for one round, with
the interpreter of this one. Prints images/s and processor time per image of both, and the ratio new
/ old of each round: at least 0.97 is wanted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
BAR = 0.97


def measure(checkout: Path, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """One round: images/s and CPU ms per image of each loader."""
    command = [sys.executable, str(checkout / "benchmarks/loaders.py"), "--rounds=1"]
    command += [f"--images={args.images}", f"--seconds={args.seconds}", f"--loaders={args.loaders}"]
    command += [f"--batch-size={args.batch_size}", f"--num-workers={args.num_workers}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    result = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        sys.exit(f"{checkout}:\n{result.stderr}")
    rates = {}
    for line in result.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in args.loaders.split(","):
            rates[cells[0]] = (float(cells[1]), float(cells[4]))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--old", type=Path, required=True, help="checkout of the old revision")
    parser.add_argument("--new", type=Path, default=HERE, help="default: this checkout")
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each loader in each turn")
    parser.add_argument("--loaders", default="torch,dali", help="names, with commas")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    args.images = args.images.resolve()
    checkouts = {"old": args.old.resolve(), "new": args.new.resolve()}
    rates: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in checkouts}
    for number in range(args.rounds):
        for name, checkout in checkouts.items():
            rates[name].append(measure(checkout, args))
            print(number + 1, name, rates[name][-1], flush=True)
    print("\n| loader | what | old | new | new / old, median of rounds | lowest | highest |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for loader in args.loaders.split(","):
        for column, what in enumerate(("images/s", "CPU ms per image")):
            old, new = ([turn[loader][column] for turn in rates[name]] for name in checkouts)
            ratios = [after / before for before, after in zip(old, new, strict=True)]
            print(
                f"| {loader} | {what} | {statistics.median(old):.2f} | {statistics.median(new):.2f}"
                f" | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
            )
    print(f"\nbar: images/s new / old >= {BAR}, on a machine that does nothing else")


if __name__ == "__main__":
    main()

"""A recipe with several seeds, one run after the other: final accuracy and wall time of each.

    python benchmarks/seeds.py --config cifar10_resnet9 [--seeds 5] [--nproc 1] data.root=DIR ...

Each run is `torchrun -m resnet_dist.train` in a folder of its own below --out (default: temporary).
Prints for each seed the last top-1, the seconds from the first record to the last (all but start-up
and the first log interval) and those of the whole command; then means and standard deviations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resnet_dist.metrics.jsonl import Record, read_records
from resnet_dist.run.versions import package_versions
from resnet_dist.system.json_files import read_lines


def run_recipe(config: str, settings: list[str], folder: Path, nproc: int) -> list[Record]:
    """Train in `folder`; its records. Ends the program if the run fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(nproc)]
    command += ["-m", "resnet_dist.train", "--config", config, *settings]
    command += [f"run.dir={folder}", "log.progress=lines"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{settings} failed with code {result.returncode}:\n{result.stderr[-2000:]}")
    return read_records(folder / "metrics.jsonl")


def train(folder: Path, args: argparse.Namespace, seed: int) -> tuple[float, float, float]:
    """(final top-1 as a share of 1, seconds between records, seconds of the whole command)."""
    start = time.perf_counter()
    records = run_recipe(args.config, [*args.overrides, f"seed={seed}"], folder, args.nproc)
    seconds = time.perf_counter() - start
    top1 = [record["val/top1"] for record in records if "val/top1" in record][-1]
    return float(top1), float(records[-1]["time"]) - float(records[0]["time"]), seconds


def write_band(path: Path, args: argparse.Namespace, folders: list[Path]) -> None:
    """Keep the curves of the seeds as a band that `resnet-dist report` compares runs with."""
    runs, epochs = [], []
    for folder in folders:
        rows = [r for r in read_records(folder / "metrics.jsonl") if "val/top1" in r]
        epochs = [round(row["epoch"]) for row in rows]
        runs.append([round(float(row["val/top1"]), 6) for row in rows])
    start = read_lines(folders[0] / "starts.jsonl")[-1]
    words = ["python benchmarks/seeds.py", "--config", args.config, "--seeds", str(args.seeds)]
    band = {
        "recipe": args.config,
        "num_train_samples": start["num_train_samples"],
        "made_with": {
            "command": " ".join([*words, "--nproc", str(args.nproc)]),
            "date": start["time"][:10],
            **package_versions(),
        },
        "epochs": epochs,
        "val/top1": runs,
    }
    lines = [f" {json.dumps(key)}: {_on_lines(value)}" for key, value in band.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _on_lines(value: object) -> str:
    """JSON with a run per line."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"
    return json.dumps(value)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--band", type=Path, help="write the curves, for configs/bands/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        results = []
        for seed in range(args.seeds):
            results.append(train(folder / str(seed), args, seed))
            top1, recorded, seconds = results[-1]
            print(f"seed {seed}: top-1 {top1:.2%}, {recorded:.1f} of {seconds:.1f} s", flush=True)
        if args.band is not None:
            write_band(args.band, args, [folder / str(seed) for seed in range(args.seeds)])
    names = ("top-1", "seconds between records", "seconds in all")
    for name, values, form in zip(
        names, zip(*results, strict=True), ("{:.2%}", "{:.1f}", "{:.1f}"), strict=True
    ):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = form.format(statistics.fmean(values))
        print(f"{name}: mean {mean}, standard deviation {form.format(spread)}, n = {len(values)}")


if __name__ == "__main__":
    main()

"""What starting from weights brings: half of CIFAR-10's classes, then the others with few images.

    python benchmarks/fine_tuning.py DATA [--seeds 5] [--images 50] [--width 16]

DATA: CIFAR-10 as class folders, train/ and test/. A ResNet-9 is trained on the first five classes
with all their images; then, for each seed, on the other five with 50 images a class, once from
those weights and once from scratch, alternating. Prints top-1 on all test images of these classes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from resnet_dist import train
from resnet_dist.evaluate.__main__ import main as evaluate

SETTINGS = ["data.loader=memory", "train.precision=float32", "log.tensorboard=false"]


def link_classes(source: Path, folder: Path, classes: list[str], most: int | None) -> None:
    """A data set of links: some classes, at most so many training images of each."""
    for split in ("train", "test"):
        for name in classes:
            place = folder / split / name
            place.mkdir(parents=True)
            files = sorted((source / split / name).iterdir())
            for path in files[: most if split == "train" else None]:
                (place / path.name).symlink_to(path)


def run(folder: Path, data: Path, *words: str) -> float:
    """Train; top-1 of the last checkpoint on the test images, a share of 1."""
    shutil.rmtree(folder, ignore_errors=True)
    common = ["--config", "cifar10_resnet9", f"run.dir={folder}", f"data.root={data}", *SETTINGS]
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main([*common, *words])
    assert code == 0
    newest = max((folder / "checkpoints").glob("step_*.pt"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert evaluate([str(newest), f"data.root={data}", "--format=json"]) == 0
    found: float = json.loads(out.getvalue())[0]["top1"]
    return found


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="of the first training")
    parser.add_argument("--few-epochs", type=int, default=30)
    arguments = parser.parse_args()
    classes = sorted(path.name for path in (arguments.data / "train").iterdir())
    half = len(classes) // 2
    width = f"model.width={arguments.width}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_classes(arguments.data, folder / "first", classes[:half], None)
        link_classes(arguments.data, folder / "second", classes[half:], arguments.images)
        first = run(folder / "base", folder / "first", width, f"train.epochs={arguments.epochs}")
        print(f"first half, all images, {arguments.epochs} epochs: {first:.2%}", flush=True)
        weights = max((folder / "base/checkpoints").glob("step_*.pt"))
        few = [width, f"train.epochs={arguments.few_epochs}", "train.global_batch_size=50"]
        ways = {"from weights": [f"model.weights={weights}"], "from scratch": []}
        results: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(arguments.seeds):
            for way, words in ways.items():
                top1 = run(folder / "few", folder / "second", *few, *words, f"seed={seed}")
                results[way].append(top1)
                print(f"seed {seed}, {way}: {top1:.2%}", flush=True)
    for way, found in results.items():
        spread = f"{min(found):.2%} to {max(found):.2%}"
        print(f"{way}: median {statistics.median(found):.2%}, {spread}")
    pairs = zip(*results.values(), strict=True)
    gains = sorted(100 * (a - b) for a, b in pairs)
    print(f"gain: median {statistics.median(gains):.1f}, {gains[0]:.1f} to {gains[-1]:.1f} points")


if __name__ == "__main__":
    main()

"""`resnet-dist predict` over many files, against the loader alone: images/s, and memory.

    python benchmarks/predict_speed.py DATA [--rounds 3] [--size 32] [--copies 1]

DATA: a folder of class folders, such as CIFAR-10's train/. Three files that are no images lie
beside its images. The network is a narrow ResNet-18, so that reading decides. Alternating, in one
process; the index of the loader is built before.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from resnet_dist.config.load import load_config
from resnet_dist.data.index.index import open_index
from resnet_dist.data.loaders.build import build_eval_loader
from resnet_dist.predict.__main__ import main as predict

NETWORK = ["model.name=predict_speed:tiny", "model.num_classes=10", "train.precision=float32"]


def tiny(num_classes: int) -> nn.Module:
    """A network that takes next to no time."""
    first = nn.Conv2d(3, 4, 8, stride=8)
    return nn.Sequential(
        first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def loader_alone(words: list[str]) -> float:
    """Seconds for all images of the validation split."""
    config = load_config(["finetune"], words).config
    index = open_index(config.data, config.data.val_split, build=True, show_progress=False)
    loader = build_eval_loader(
        config.data,
        index,
        config.dali,
        batch_size=256,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        num_workers=len(os.sched_getaffinity(0)),
    )
    start = time.perf_counter()
    for _ in loader.batches():
        pass
    return time.perf_counter() - start


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--copies", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found_files = sorted(arguments.data.resolve().glob("*/*"))
        files = [(path, copy) for copy in range(arguments.copies) for path in found_files]
        for path, copy in files:
            place = folder / "links" / path.parent.name / f"{copy}_{path.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
        bad = folder / "bad"
        bad.mkdir()
        for number in range(3):
            (bad / f"{number}.jpg").write_bytes(b"no image")
        size = arguments.size
        sizes = [f"data.train_size={size}", f"data.eval_size={size}"]
        words = [*NETWORK, *sizes, f"data.eval_resize_size={size * 8 // 7}"]
        torch.save(tiny(10).state_dict(), folder / "weights.pth")
        data = [f"data.root={folder}", "data.val_split=links", f"data.cache_dir={folder / 'cache'}"]
        data.append("data.loader=torch")
        loader_alone([*words, *data])  # builds the index, fills the page cache
        speeds: dict[str, list[float]] = {"loader alone": [], "predict": []}
        peaks = []
        for _ in range(arguments.rounds):
            speeds["loader alone"].append(len(files) / loader_alone([*words, *data]))
            start = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()) as said:
                code = predict(
                    [str(folder / "weights.pth"), str(folder / "links"), str(bad), *words]
                    + ["--batch-size=256", "--format=jsonl", f"--out={folder / 'out.jsonl'}"]
                )
            speeds["predict"].append(len(files) / (time.perf_counter() - start))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            assert code == 1
            assert said.getvalue().count("skipped: ") == 3
            assert sum(1 for _ in (folder / "out.jsonl").open()) == len(files)
    for what, found in speeds.items():
        spread = f"{min(found):.0f} to {max(found):.0f}"
        print(f"{what}: median {statistics.median(found):.0f} images/s ({spread})")
    ratio = statistics.median(speeds["predict"]) / statistics.median(speeds["loader alone"])
    print(f"ratio of the medians {ratio:.3f}; largest memory after each round, MiB: ", end="")
    print(", ".join(f"{peak:.0f}" for peak in peaks))


if __name__ == "__main__":
    main()

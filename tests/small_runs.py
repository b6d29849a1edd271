"""Real runs of shipped configs in miniature: one process on the CPU, float32, small images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from os import environ
from pathlib import Path

import numpy as np
from PIL import Image

SAME_EVERYWHERE = [
    "data.loader=torch",
    "data.num_workers=1",
    "train.precision=float32",
    "performance.num_threads=1",
    "log.every_steps=1",
    "log.tensorboard=false",
]
"""What could make two machines compute different numbers, pinned."""


def write_pictures(root: Path, *, num_classes: int, train: int, val: int) -> None:
    """`train` and `val` JPEG files per class: smooth noise in the colour of its class. The same
    bytes with every version of NumPy (integers from a fixed generator)."""
    for split, count in (("train", train), ("val", val)):
        for label in range(num_classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                _picture(label, i if split == "train" else 1000 + i).save(
                    folder / f"{i:03d}.jpg", quality=90
                )


def _picture(label: int, number: int) -> Image.Image:
    noise = np.random.Generator(np.random.PCG64([label, number])).integers(0, 160, (6, 6, 3))
    noise[:, :, label % 3] += 30 * (1 + label // 3)
    coarse = Image.fromarray(np.minimum(noise, 255).astype(np.uint8))
    width, height = 48 + 7 * (number % 5), 64 - 5 * (number % 6)
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def run(
    config: str,
    root: Path,
    run_dir: Path,
    settings: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Train as a user does, by a command line, to the end; raises if that fails."""
    command = [sys.executable, "-m", "resnet_dist.train", *arguments(config, root, settings)]
    subprocess.run(
        [*command, f"run.dir={run_dir}"],
        env={**environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )


def overrides(root: Path, settings: Sequence[str]) -> list[str]:
    """The `key=value` part of the command line."""
    places = [f"data.root={root}", f"data.cache_dir={root / 'cache'}"]
    return [*SAME_EVERYWHERE, *places, *settings]


def arguments(config: str, root: Path, settings: Sequence[str]) -> list[str]:
    """The command line of a run but for its folder."""
    return ["--config", config, *overrides(root, settings)]

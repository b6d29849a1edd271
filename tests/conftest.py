"""Fixtures shared by the tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PRELOAD = ["pytest", "resnet_dist.train", "torch.fx.experimental.symbolic_shapes"]
"""Importing these takes seconds. The last one is what the first backward pass imports."""


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """One fork server that has imported everything, for ranks, readers, and readers of ranks."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def _write_image(path: Path, height: int, width: int, *, seed: int, mode: str = "RGB") -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


@pytest.fixture(scope="session")
def write_image() -> Callable[..., None]:
    """write(path, height, width, *, seed, mode="RGB"): a JPEG (or PNG, by suffix) of smooth
    noise, the same for the same seed."""
    return _write_image


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of real JPEGs of varied sizes: train/ 3 classes of 9, val/ 3 classes of 4."""
    root = tmp_path_factory.mktemp("images")
    sizes = [(60, 80), (81, 53), (64, 64), (47, 120), (130, 41), (33, 35), (90, 91), (71, 70)]
    for split, count in (("train", 9), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                height, width = sizes[(i + label) % len(sizes)]
                seed = hash((len(split), label, i)) % 2**31
                _write_image(root / split / name / f"{i:03d}.jpg", height, width, seed=seed)
    return root

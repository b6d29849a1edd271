"""Fixtures shared by the tests."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_dist.system.signals import STOP_SIGNALS
from tests.launch import train

PRELOAD = [
    "pytest",
    "resnet_dist.trainer",
    "resnet_dist.metrics.tensorboard",
    "torch.fx.experimental.symbolic_shapes",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "matplotlib.font_manager",
]
"""Importing these takes seconds: the trainer, and what it imports only when it needs it."""


TIERS = ("unit", "golden", "parity", "multiprocess", "fuzz", "gpu", "slurm", "faults")
"""Folders of tests in the order in which they run: the quick ones first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by tier; within one the order stays."""
    root = Path(__file__).parent
    items.sort(key=lambda item: TIERS.index(item.path.relative_to(root).parts[0]))


def _reset_signals() -> None:
    handlers = dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)
    for number, handler in (handlers | {signal.SIGINT: signal.default_int_handler}).items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def default_signals() -> None:
    """Programs that a test starts must not inherit what this process ignores: CI may run in the
    background (SIGINT) or under nohup (SIGHUP), and runs in this process leave handlers behind."""
    _reset_signals()


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """One fork server that has imported everything, for ranks, readers, and readers of ranks."""
    _reset_signals()  # it hands on what it inherits
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


PHOTOGRAPHS = {
    "animal": ("chelsea.png",),
    "people": ("astronaut.png", "camera.png"),
    "things": ("coffee.png", "motorcycle_left.png", "motorcycle_right.png", "coins.png"),
    "view": ("rocket.jpg", "hubble_deep_field.jpg", "moon.png", "grass.png", "gravel.png"),
}
"""What scikit-image ships in its package; nothing is fetched."""
COMPRESSIONS = [(95, "4:4:4"), (90, "4:2:0"), (75, "4:2:2")]
"""JPEG qualities and chroma subsamplings."""


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders of photographs: real ImageNet where RESNET_DIST_TEST_IMAGENET names
    one, else those of scikit-image, each in several sizes and compressions."""
    named = os.environ.get("RESNET_DIST_TEST_IMAGENET")
    if named:
        return Path(named)
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        pytest.skip("scikit-image is not installed, and RESNET_DIST_TEST_IMAGENET is not set")
    root = tmp_path_factory.mktemp("photographs")
    for label, names in PHOTOGRAPHS.items():
        (root / label).mkdir()
        for name in names:
            with Image.open(Path(package.origin).parent / "data" / name) as photograph:
                _write_photograph(photograph, root / label / Path(name).stem)
    return root


def _write_photograph(photograph: Image.Image, stem: Path) -> None:
    """With at most 700, 500 and 331 pixels on the longer side, compressed differently."""
    image = photograph if photograph.mode == "L" else photograph.convert("RGB")
    for side, (quality, subsampling) in zip((None, 500, 331), COMPRESSIONS, strict=True):
        scaled = image.copy()
        scaled.thumbnail((side or 700, side or 700), Image.Resampling.LANCZOS)
        settings = {} if image.mode == "L" else {"subsampling": subsampling}
        scaled.save(f"{stem}_{quality}.JPEG", quality=quality, **settings)


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory, write_image: Callable[..., None]) -> Path:
    """108 training and 21 validation JPEGs of 3 classes: 4 steps of 26 an epoch, 4 dropped."""
    root = tmp_path_factory.mktemp("run_root")
    for split, count in (("train", 36), ("val", 7)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                seed = label * 1000 + i + (500 if split == "val" else 0)
                path = root / split / name / f"{i:03d}.jpg"
                write_image(path, 40 + 7 * (i % 5), 64 - 5 * (i % 7), seed=seed)
    return root


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, run_root: Path
) -> Callable[[int, str], Path]:
    """uninterrupted(ranks, loader): the folder of a run of `tests.launch.TINY` to its end."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def run(nproc: int, loader: str) -> Path:
        run_dir = folder / f"{loader}{nproc}"
        if not run_dir.exists():
            train(nproc, run_root, run_dir, f"data.loader={loader}", "checkpoint.every_steps=4")
        return run_dir

    return run

"""Data for whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


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

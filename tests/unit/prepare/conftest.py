"""Calling `python -m resnet_dist.prepare`, and something to pack."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_dist.prepare.__main__ import main
from tests.archives import WNIDS, Archives, build_archives
from tests.unit.prepare.packing import Prepare, split_images


@pytest.fixture
def prepare(capfd: pytest.CaptureFixture[str]) -> Prepare:
    """Calls the entry point: (exit code, what it said)."""

    def call(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        said = capfd.readouterr()
        return code, said.err if code else said.out

    return call


@pytest.fixture
def root(tmp_path: Path, image_root: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(image_root, tmp_path / "data"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_image: Callable[..., None]) -> Archives:
    """40 images of 4 classes."""
    folder = tmp_path_factory.mktemp("small")
    contents = []
    for i in range(40):
        write_image(folder / "one.jpg", 30 + 3 * (i % 7), 60 - 4 * (i % 5), seed=i)
        contents.append((folder / "one.jpg").read_bytes())
    return build_archives(folder, *split_images(contents, WNIDS))

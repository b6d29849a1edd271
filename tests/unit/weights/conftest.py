"""A small trained run, and state dicts of other programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist import train
from tests.launch import TINY


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, image_root: Path) -> Path:
    """The folder of a run of two epochs, with a moving average."""
    folder = tmp_path_factory.mktemp("small") / "run"
    words = [f"run.dir={folder}", f"data.root={image_root}", "log.tensorboard=false"]
    settings = ["train.global_batch_size=9", "train.epochs=2", "train.ema_decay=0.5"]
    assert train.main([*TINY, *words, *settings]) == 0
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(small_run: Path) -> Path:
    """Its newest checkpoint."""
    return max((small_run / "checkpoints").glob("step_*.pt"))

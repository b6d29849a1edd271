"""Whole runs on images held in memory: killed and resumed, the run of the torch loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.launch import assert_same_run, losses, train

SETTINGS = [
    "augment.crop=pad_reflect",
    "data.eval_resize_size=24",
    "augment.mixup_alpha=0.4",
    "augment.erase_probability=0.5",
    "train.accumulation_steps=2",
    "performance.num_threads=1",
    "train.epochs=2",
    "checkpoint.every_steps=3",
]


def test_killed_and_resumed_is_the_run_of_the_torch_loader(
    tmp_path: Path, write_image: Callable[..., None]
) -> None:
    """Bit for bit: weights, optimizer, records. Two uneven ranks, whose pairs lie across them."""
    root = tmp_path / "images"
    for i in range(90):
        path = root / ("train" if i < 78 else "val") / "abc"[i % 3] / f"{i:02d}.jpg"
        write_image(path, 24, 24, seed=i)
    train(2, root, tmp_path / "torch", *SETTINGS, "data.loader=torch")
    memory = [*SETTINGS, "data.loader=memory"]
    kill = {"RESNET_DIST_FAILPOINT": "step.after_optimizer@4"}
    killed = train(2, root, tmp_path / "memory", *memory, environment=kill, check=False)
    assert -9 in killed.codes
    resumed = train(2, root, tmp_path / "memory", *memory)
    assert "resuming from" in resumed.output
    assert "held by each rank's device: 0.00 GiB of training images, 0.00 GiB of" in resumed.output
    assert len(losses(tmp_path / "memory")) == 6
    assert_same_run(tmp_path / "torch", tmp_path / "memory")

"""Whole runs with every augmentation turned on: any number of ranks, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resnet_dist.replay.__main__ import main as replay
from tests.launch import assert_same_run, losses, newest_checkpoint, records, train

EVERYTHING = [
    "augment.mixup_alpha=0.4",
    "augment.cutmix_alpha=1.0",
    "augment.erase_probability=0.5",
    "augment.auto_augment=ra",
    "augment.color_jitter=[0.3,0.3,0.3,0.1]",
    "augment.lighting=0.1",
    "augment.colout=0.1",
    "augment.ra_reps=2",
    "augment.progressive_start_size=16",
    "augment.progressive_epochs=[0,2]",
    "augment.progressive_multiple=4",
    "train.max_micro_batch_size=14",
    "train.accumulation_steps=2",
    "loss.label_smoothing=0.1",
    "model.stochastic_depth=0.3",
    "train.sam_rho=0.05",
    "train.sam_every_steps=3",
    "train.ema_decay=0.9",
    "train.ema_ramp=true",
    "train.ema_start_epoch=0.5",
    "train.ema_norm_steps=3",
    # Backward of a 1x1 convolution with stride 2 and 8 channels, channels-last, odd batch: with two
    # threads torch 2.15 writes beyond its memory.
    "performance.num_threads=1",
    "train.max_steps=10",
    "eval.flip=true",
    "checkpoint.every_steps=4",
]
"""Micro-batches of 13 of a global batch of 26: pairs lie across micro-batches and ranks."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("augmented") / "one"
    train(1, run_root, folder, *EVERYTHING, "train.max_micro_batch_size=26")
    return folder


def test_the_number_of_ranks_does_not_change_the_curve(
    whole: Path, run_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "three"
    train(3, run_root, run_dir, *EVERYTHING)
    assert len(losses(whole)) == 10
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-4)
    one, three = (
        [
            record[tag]
            for record in records(run)
            for tag in ("val/loss", "val/ema_loss")
            if tag in record
        ]
        for run in (whole, run_dir)
    )
    assert len(one) == 4
    assert three == pytest.approx(one, rel=1e-3)
    assert newest_checkpoint(run_dir)["next_batch"] == newest_checkpoint(whole)["next_batch"]


def test_a_step_of_it_is_taken_apart(whole: Path, tmp_path: Path) -> None:
    """Step 9, whose update is a usual one; mixed labels, two micro-batches, blocks left out."""
    assert replay([str(whole), "--step", "9", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "step_9.json").read_text())
    record = next(each for each in records(whole) if each["step"] == 9)
    losses = [sample["loss"] for sample in found["samples"]]
    assert sum(losses) / len(losses) == pytest.approx(record["train/loss"], rel=1e-4)
    norm = sum(value**2 for value in found["gradient_norms"].values()) ** 0.5
    assert norm == pytest.approx(record["train/grad_norm"], rel=1e-4)
    assert any(len(sample["labels"]) == 2 for sample in found["samples"])


@pytest.mark.parametrize(
    "loss", ["cross_entropy", pytest.param("binary_cross_entropy", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_is_the_run_bit_for_bit(
    loss: str, whole: Path, run_root: Path, tmp_path: Path
) -> None:
    """On two ranks; which is the run on one rank, too."""
    settings = [*EVERYTHING, f"loss.name={loss}"]
    if loss == "binary_cross_entropy":
        settings += ["loss.bce_target_threshold=0.2", "augment.mix_mode=batch", "data.loader=dali"]
        settings += ["augment.auto_augment=ra_timm", "augment.ra_magnitude_std=0.5"]
        settings += ["optim.name=sgdw", "performance.recompute=true"]
    for name in ("whole", "killed"):
        kill = {"RESNET_DIST_FAILPOINT": "step.after_optimizer@7"} if name == "killed" else {}
        ended = train(
            2, run_root, tmp_path / name, *settings, environment=kill, check=name == "whole"
        )
        assert any(ended.codes) == (name == "killed")
    assert newest_checkpoint(tmp_path / "killed")["step"] == 4
    train(2, run_root, tmp_path / "killed", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    if loss == "cross_entropy":
        assert losses(tmp_path / "killed") == pytest.approx(losses(whole), rel=1e-4)


def test_what_small_images_are_trained_with(run_root: Path, tmp_path: Path) -> None:
    """cifar10_fast's ingredients: filters that come from the first batch, flips that alternate,
    Muon. Two ranks have one rank's curve, and a start before the first checkpoint begins alike."""
    settings = ["model.name=resnet9", "model.width=8", "model.stem=whiten", "train.ema_decay=0.9"]
    settings += ["augment.flip=alternating", "augment.crop=pad_reflect", "optim.name=muon"]
    settings += ["optim.lr=0.003", "train.max_steps=6", "performance.num_threads=1"]
    for name, ranks, kill in (("one", 1, {}), ("two", 2, {}), ("killed", 2, {"step.begin@2"})):
        failpoint = {"RESNET_DIST_FAILPOINT": next(iter(kill))} if kill else {}
        folder = tmp_path / name
        train(ranks, run_root, folder, *settings, environment=failpoint, check=not kill)
    # Muon rounds its updates to bfloat16, where the last bit of a sum can turn a digit.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    train(2, run_root, tmp_path / "killed", *settings)
    assert_same_run(tmp_path / "two", tmp_path / "killed")
    one, two = (newest_checkpoint(tmp_path / name) for name in ("one", "two"))
    for part in ("model", "average"):
        filters = [state[part]["conv1.0.weight"] for state in (one, two)]
        torch.testing.assert_close(*filters, rtol=1e-5, atol=1e-5)
        assert torch.equal(filters[0][:12], -filters[0][12:])

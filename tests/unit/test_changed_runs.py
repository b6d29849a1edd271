"""What a person changes between two starts takes effect, is said, or is refused; and an evaluation
reads what it was told to, by names of classes, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist import train
from resnet_dist.system.json_files import read_lines
from tests.launch import TINY

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], image_root: Path, tmp_path: Path) -> Run:
    """Calls the entry point in this process: (exit code, all that it said)."""

    def call(*arguments: str, root: Path = image_root, folder: str = "run") -> tuple[int, str]:
        base = [f"run.dir={tmp_path / folder}", f"data.root={root}", "log.tensorboard=false"]
        small = ["train.global_batch_size=6", "train.epochs=3"]  # 4 steps each
        code = train.main([*TINY, *base, *small, *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


CHANGE = "run.allow_config_change=true"


@pytest.fixture
def trained(run: Run, tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 4 and 8."""
    code, said = run("train.max_steps=8")
    assert code == 0, said
    return tmp_path / "run"


def load(folder: Path, step: int) -> dict[str, Any]:
    path = folder / "checkpoints" / f"step_{step:08d}.pt"
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("trained")
def test_a_change_that_is_allowed_is_said_and_takes_effect(run: Run, tmp_path: Path) -> None:
    code, said = run("optim.weight_decay=0.0123", "optim.momentum=0.5", CHANGE)
    assert code == 0, said
    assert "note: changed: optim.weight_decay: " in said
    assert "0.0123 now" in said
    assert "at step 8 of 12 (epoch 2 of 3, learning rate " in said
    groups = load(tmp_path / "run", 12)["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.5}
    assert max(group["weight_decay"] for group in groups) == 0.0123


@pytest.mark.usefixtures("trained")
def test_another_batch_size_says_where_the_run_now_stands(run: Run) -> None:
    code, said = run("train.global_batch_size=9", CHANGE)
    assert code == 0, said
    assert "at step 8 of 9 (epoch 2.667 of 3" in said


@pytest.mark.usefixtures("trained")
def test_fewer_epochs_than_are_done_are_no_limit(run: Run) -> None:
    code, said = run("train.epochs=2", CHANGE)
    assert code == 0, said
    assert "all 8 steps of 2 epochs are done" in said
    assert "finished at step 8" in said
    assert "max_steps" not in said


def test_a_moving_average_begins_at_the_weights_of_the_checkpoint(run: Run, trained: Path) -> None:
    before = load(trained, 8)["model"]
    code, said = run("train.ema_decay=0.999999", "train.max_steps=9", CHANGE)
    assert code == 0, said
    assert "it begins at the checkpoint's weights" in said
    average = load(trained, 9)["average"]
    for name in (name for name, value in before.items() if value.is_floating_point()):
        value = before[name]
        torch.testing.assert_close(average[name].float(), value.float(), atol=2e-5, rtol=1e-4)


def test_an_average_that_is_not_there_is_not_evaluated(run: Run, trained: Path) -> None:
    before = files_of(trained)
    code, said = run("run.evaluate_only=true", "train.ema_decay=0.9")
    assert code == 2
    assert "holds no moving average" in said
    assert files_of(trained) == before


@pytest.mark.usefixtures("trained")
def test_other_validation_images_are_said(run: Run, image_root: Path, tmp_path: Path) -> None:
    shutil.copytree(image_root, tmp_path / "data")
    next((tmp_path / "data/val/ant").iterdir()).unlink()
    code, said = run(root=tmp_path / "data")
    assert code == 0, said
    assert "the validation samples are not those of the checkpoint" in said


def test_a_named_checkpoint_is_evaluated_by_names_of_classes_from_val_alone(
    run: Run, trained: Path, image_root: Path, tmp_path: Path
) -> None:
    """Not even a class more or less, or another order of theirs, changes what is measured."""
    _, of_whole = run("run.evaluate_only=true")
    root = tmp_path / "part"
    shutil.copytree(image_root / "val" / "cat", root / "val" / "cat")
    shutil.copytree(image_root / "val" / "bee", root / "val" / "bee")
    before = files_of(tmp_path)
    step = trained / "checkpoints" / "step_00000004.pt"
    code, said = run(
        "run.evaluate_only=true", f"run.resume={step}", "train.global_batch_size=1", root=root
    )
    assert code == 0, said
    assert f"evaluating {step} on 8 images" in said
    assert "model at step 4: " in said
    assert "(8 images)" in said
    assert files_of(tmp_path) == before
    assert "step_00000008.pt on 12 images" in of_whole
    shutil.copytree(image_root / "val" / "ant", root / "val" / "zebra")
    code, said = run("run.evaluate_only=true", root=root)
    assert code == 2
    assert "lacks: zebra" in said


def test_a_damaged_newest_is_named_and_left_where_it_is(run: Run, trained: Path) -> None:
    newest = trained / "checkpoints" / "step_00000008.pt"
    newest.write_bytes(newest.read_bytes()[:-7])
    before = files_of(trained)
    code, said = run("run.evaluate_only=true")
    assert code == 0, said
    assert "step_00000008.pt" in said
    assert "model at step 4: " in said
    assert files_of(trained) == before


def test_outputs_that_mean_something_else_are_refused_even_with_changes(
    run: Run, trained: Path, image_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_root, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "ant").rename(tmp_path / "data" / split / "dog")
    before = files_of(trained)
    code, said = run(CHANGE, root=tmp_path / "data")
    assert code == 2
    assert "missing: ant; new: dog" in said
    assert files_of(trained) == before


def test_files_that_are_left_out_are_said_at_a_start(
    run: Run, image_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_root, tmp_path / "data")
    (tmp_path / "data/val/ant/x.bmp").write_bytes(b"x")
    code, said = run("train.max_steps=1", root=tmp_path / "data")
    assert code == 0, said
    assert "left out of the validation images: 1 .bmp (samples are" in said


def test_a_run_from_another_folders_file_has_a_best_of_its_own(run: Run, trained: Path) -> None:
    start = trained / "checkpoints" / "step_00000008.pt"
    code, said = run(f"run.resume={start}", folder="other")
    assert code == 0, said
    other = trained.parent / "other"
    assert (other / "checkpoints" / "best.pt").exists()
    assert load(other, 12)["best"]["step"] == 12


def test_going_back_drops_records_and_goes_on_from_there(run: Run, trained: Path) -> None:
    start = trained / "checkpoints" / "step_00000004.pt"
    code, said = run(f"run.resume={start}", "train.max_steps=6")
    assert code == 0, said
    assert "going back to step 4" in said
    steps = [line.split(",")[0] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == '{"step": 6'
    code, said = run()
    assert code == 0, said
    assert "step_00000006.pt at step 6 of 12" in said


def test_a_limited_run_records_its_last_interval_and_is_continued_exactly(
    run: Run, tmp_path: Path
) -> None:
    whole = ("log.every_steps=4", "train.max_steps=8")
    assert run(*whole, folder="whole")[0] == 0
    code, said = run("log.every_steps=4", "train.max_steps=6", folder="cut")
    assert code == 0, said
    assert "stopped at step 6 by train.max_steps; raise train.max_steps to go on" in said
    runs = tmp_path
    losses = {
        name: {
            record["step"]: record["train/loss"]
            for record in read_lines(runs / name / "metrics.jsonl")
            if "train/loss" in record
        }
        for name in ("whole", "cut")
    }
    assert list(losses["cut"]) == [4, 6]
    code, said = run(*whole, folder="cut")
    assert code == 0, said
    after = [r for r in read_lines(runs / "cut" / "metrics.jsonl") if "train/loss" in r]
    assert {r["step"]: r["train/loss"] for r in after} == losses["whole"]

"""What is new in a training: starting from weights, frozen parts, the last layer's rate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist import train
from resnet_dist.checkpoint.files import write_checkpoint
from tests.launch import TINY

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], image_root: Path, tmp_path: Path) -> Run:
    """Calls the entry point in this process: (exit code, all that it said)."""

    def call(*arguments: str, root: Path = image_root) -> tuple[int, str]:
        words = [f"run.dir={tmp_path / 'run'}", f"data.root={root}", "log.tensorboard=false"]
        code = train.main(
            [*TINY, *words, "train.global_batch_size=9", "train.epochs=2", *arguments]
        )
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def saved(folder: Path) -> dict[str, Any]:
    return load(max((folder / "checkpoints").glob("step_*.pt")))


def test_a_run_starts_at_step_0_from_weights_and_is_resumed_without_the_file(
    run: Run, small_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "start.pt"
    shutil.copy(small_checkpoint, path)
    words = [f"model.weights={path}", "optim.name=adamw", "optim.lr=1e-9", "train.ema_decay=0.9"]
    code, said = run(*words, "train.max_steps=1")
    assert code == 0, said
    assert f"starting from the weights in {path}" in said
    assert "the last layer is taken over for its classes, by their names" in said
    before, after = load(small_checkpoint)["model"], saved(tmp_path / "run")
    assert after["step"] == 1
    for state in (after["model"], after["average"]):
        for name, value in before.items():
            if value.is_floating_point() and "running" not in name:
                assert torch.allclose(state[name], value, atol=1e-6), name
    path.unlink()
    code, said = run(*words)
    assert code == 0, said
    assert "starting from the weights" not in said


def test_a_files_whitening_filters_stay(run: Run, tmp_path: Path) -> None:
    """Only a run that starts from its seed takes them from its data."""
    words = ["model.name=resnet9", "model.stem=whiten", "train.max_steps=1", "optim.lr=1e-9"]
    code, said = run(*words)
    assert code == 0, said
    first = saved(tmp_path / "run")["model"]
    shutil.move(tmp_path / "run", tmp_path / "first")
    path = max((tmp_path / "first" / "checkpoints").glob("step_*.pt"))
    code, said = run(*words, f"model.weights={path}", "seed=7")
    assert code == 0, said
    second = saved(tmp_path / "run")["model"]
    assert torch.equal(second["conv1.0.weight"], first["conv1.0.weight"])
    shutil.move(tmp_path / "run", tmp_path / "second")
    code, said = run(*words, "seed=7")
    assert code == 0, said
    other = saved(tmp_path / "run")["model"]
    assert not torch.equal(other["conv1.0.weight"], first["conv1.0.weight"])


def test_the_moving_average_of_a_file(run: Run, small_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.weights={small_checkpoint}", "model.weights_average=true", "optim.lr=1e-9"]
    code, said = run(*words, "train.max_steps=1")
    assert code == 0, said
    average, after = load(small_checkpoint)["average"], saved(tmp_path / "run")["model"]
    assert torch.allclose(after["conv1.weight"], average["conv1.weight"], atol=1e-6)
    code, said = run("model.weights_average=true", f"run.dir={tmp_path / 'other'}")
    assert code == 2
    assert "model.weights_average (True): needs model.weights" in said


def test_other_classes_get_a_new_last_layer(
    run: Run, small_checkpoint: Path, image_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_root, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "ant").rename(tmp_path / "data" / split / "dog")
    code, said = run(
        f"model.weights={small_checkpoint}", "train.max_steps=1", root=tmp_path / "data"
    )
    assert code == 0, said
    assert (
        "the last layer is new: 3 classes instead of the file's 3, which have other names" in said
    )
    code, said = run(f"model.weights={tmp_path / 'none.pt'}", "run.dir=" + str(tmp_path / "new"))
    assert code == 2
    assert "none.pt): no such file" in said


@pytest.mark.parametrize(
    ("what", "moved"),
    [
        ("backbone", {"fc"}),
        ("stage4", {"fc"}),
        ("stage2", {"layer3", "layer4", "fc"}),
        ("bn", None),
    ],
)
def test_what_is_frozen_stays(
    run: Run, small_checkpoint: Path, tmp_path: Path, what: str, moved: set[str] | None
) -> None:
    code, said = run(f"model.weights={small_checkpoint}", f"model.freeze={what}", "optim.lr=0.1")
    assert code == 0, said
    assert f"model.freeze={what}: " in said
    before, after = load(small_checkpoint)["model"], saved(tmp_path / "run")["model"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    if moved is None:
        assert not any("bn" in name or "downsample.1" in name for name in changed)
        assert "conv1.weight" in changed
    else:
        assert {name.partition(".")[0] for name in changed} == moved


def test_the_last_layer_has_a_rate_of_its_own(run: Run, tmp_path: Path) -> None:
    code, said = run("optim.head_lr_factor=10", "train.max_steps=2", "schedule.warmup_epochs=0")
    assert code == 0, said
    groups = saved(tmp_path / "run")["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups][2:] == [1, 1]
    assert [group["lr"] / groups[0]["lr"] for group in groups] == pytest.approx([1, 1, 10, 10])


FOREIGN = ["model.width=64", "model.stem=standard", "data.train_size=32"]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("torchvision:mobilenet_v3_small", 0, "draws random numbers: a resumed run draws the same"),
        ("timm:resnet10t", 0, "timm:resnet10t: 4.92 million parameters, 3 classes"),
        ("tests.user_networks:small", 0, "draws random numbers"),
        ("torchvision:none", 2, "torchvision has no classifier of that name"),
        ("timm:none", 2, "timm has no network of that name"),
        ("tests.user_networks:missing", 2, "cannot be imported"),
        ("tests.user_networks:none", 2, "gives a str, not a torch module"),
    ],
)
def test_any_classifier(run: Run, name: str, code: int, words: str) -> None:
    found, said = run(f"model.name={name}", *FOREIGN, "train.max_steps=1")
    assert found == code, said
    assert words in said


def test_settings_of_our_networks_are_refused_for_others(run: Run) -> None:
    code, said = run("model.name=timm:resnet10t", "model.width=64", "model.stem=cifar")
    assert code == 2
    assert "model.stem ('cifar'): does not go with model.name=timm:resnet10t" in said


def test_grey_images(run: Run, tmp_path: Path) -> None:
    code, said = run("data.grayscale=true", "model.in_channels=1", "train.max_steps=1")
    assert code == 0, said
    assert saved(tmp_path / "run")["model"]["conv1.weight"].shape[1] == 1
    code, said = run("data.grayscale=true")
    assert code == 2
    assert "model.in_channels (3): must be 1 with data.grayscale=true" in said


def test_one_image_at_a_time_is_refused_where_batch_norm_needs_more(run: Run) -> None:
    code, said = run(
        "train.global_batch_size=1", "data.train_size=8", "model.stem=standard", "model.width=16"
    )
    assert code == 2
    assert "leaves one image of 8 px at a time, of which the last batch norm sees one value" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": 3}, "lacks config, or holds something else there"),
        ({"step": "x", "classes": None}, "lacks classes, step, or holds"),
        ({"optimizer": {}}, "its content does not fit this run"),
        ({"model": {"a": torch.zeros(1)}}, "its content does not fit this run"),
    ],
)
def test_foreign_content_with_a_valid_checksum(
    run: Run, small_checkpoint: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write_checkpoint(tmp_path / "odd.pt", {**load(small_checkpoint), **change})
    code, said = run(f"run.resume={tmp_path / 'odd.pt'}", "train.ema_decay=0.5")
    assert code == 2
    assert words in said

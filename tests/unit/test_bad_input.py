"""Every kind of bad input: one clear sentence, exit code 2, nothing overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_dist import train
from resnet_dist.run import dali_package, folder
from resnet_dist.run.lock import own_run_folder
from tests.launch import TINY

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the entry point in this process: (exit code, what it said on stderr)."""

    def call(*arguments: str, root: Path | None) -> tuple[int, str]:
        data = [f"data.root={root}", "train.global_batch_size=6"] if root else []
        base = [f"run.dir={tmp_path / 'run'}", "log.tensorboard=false", "train.max_steps=1"]
        code = train.main([*TINY, *data, *base, *arguments])
        return code, capsys.readouterr().err

    return call


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def trained(run: Run, image_root: Path, tmp_path: Path) -> Path:
    """A run folder with a checkpoint of step 1."""
    code, error = run(root=image_root)
    assert code == 0, error
    return tmp_path / "run"


CASES: list[tuple[list[str], list[str]]] = [
    (["train.epoch=3"], ["train.epoch", "unknown key", "did you mean train.epochs"]),
    (["train.epochs=many"], ["train.epochs", "'many'", "could not be converted to Integer"]),
    (["--config", "no_such"], ["--config (no_such)", "no such file", "shipped:"]),
    (["data.root=/no/such/folder"], ["data.root", "/no/such/folder"]),
    (["data.val_split=test"], ["test", "val"]),
    (["train.global_batch_size=1000"], ["train.global_batch_size (1000)", "exceeds the 27"]),
    (["model.name=resnet5"], ["model.name", "resnet5", "resnet50"]),
    (["model.num_classes=2"], ["model.num_classes (2)", "3 classes"]),
    (["run.resume=~nobody_at_all/a.pt"], ["run.resume (~nobody_at_all/a.pt)", "no such home"]),
    (["data.root=~nobody_at_all/data"], ["data.root (~nobody_at_all/data)", "no such home"]),
    (["run.resume=required"], ["run.resume (required)", "no checkpoint"]),
    (["run.resume=/no/such.pt"], ["run.resume (/no/such.pt)", "is no file"]),
    (["run.evaluate_only=true"], ["run.resume", "no checkpoint"]),
    (["dist.world_size=4"], ["dist.world_size (4)", "1 processes were started"]),
    (["schedule.warmup_epochs=50"], ["schedule.warmup_epochs"]),
    (
        ["performance.cuda_graph=true", "dist.device=cpu"],
        ["performance.cuda_graph (True)", "needs a GPU", "performance.cuda_graph=false"],
    ),
]


@pytest.mark.parametrize(("arguments", "parts"), CASES, ids=lambda value: str(value)[:40])
def test_one_sentence_and_code_2(
    run: Run, image_root: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    code, error = run(*arguments, root=image_root)
    assert code == 2
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for part in parts:
        assert part in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_class_that_only_validation_has(run: Run, image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(image_root, root)
    shutil.copytree(root / "val" / "bee", root / "val" / "wasp")
    code, error = run(root=root)
    assert code == 2
    assert "wasp" in error


def test_a_truncated_image_is_named(run: Run, image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(image_root, root)
    for bad in sorted((root / "train" / "bee").glob("*.jpg")):
        bad.write_bytes(bad.read_bytes()[:-200])
    for loader in ("torch", "dali"):
        code, error = run(f"data.loader={loader}", "train.global_batch_size=27", root=root)
        assert code == 2
        assert "bee" in error
        assert ".jpg" in error


def test_settings_that_differ_from_the_checkpoints(
    run: Run, image_root: Path, trained: Path
) -> None:
    before = files_of(trained)
    code, error = run("optim.lr=0.3", "optim.weight_decay=0.1", root=image_root)
    assert code == 2
    for part in ("optim.lr: 0.02 in the checkpoint, 0.3 now", "optim.weight_decay", "run.dir"):
        assert part in error
    assert files_of(trained) == before
    code, error = run(
        "optim.lr=0.3", "run.allow_config_change=true", "train.max_steps=2", root=image_root
    )
    assert code == 0, error


def test_another_architecture_is_refused_even_if_change_is_allowed(
    run: Run, image_root: Path, trained: Path
) -> None:
    before = files_of(trained)
    code, error = run("model.width=16", "run.allow_config_change=true", root=image_root)
    assert code == 2
    assert "model.width: 8 in the checkpoint, 16 now" in error
    assert files_of(trained) == before


def test_other_data_are_refused(run: Run, image_root: Path, trained: Path, tmp_path: Path) -> None:
    before = files_of(trained)
    root = tmp_path / "data"
    shutil.copytree(image_root, root)
    (root / "train" / "ant" / "000.jpg").unlink()
    code, error = run(root=root)
    assert code == 2
    assert "data.root: the training samples are not those of the checkpoint" in error
    assert files_of(trained) == before


def test_never_does_not_overwrite_a_run(run: Run, image_root: Path, trained: Path) -> None:
    before = files_of(trained)
    code, error = run("run.resume=never", root=image_root)
    assert code == 2
    assert "already holds a run" in error
    assert files_of(trained) == before


def test_a_folder_that_another_run_is_using(run: Run, image_root: Path, tmp_path: Path) -> None:
    with own_run_folder(tmp_path / "run"):
        code, error = run(root=image_root)
        assert code == 2
        assert "is in use by a running training" in error
        assert f"process {os.getpid()} on " in error
        assert not (tmp_path / "run" / "checkpoints").exists()
    code, error = run(root=image_root)  # a lock is never stale
    assert code == 0, error


def test_foreign_checkpoint(run: Run, image_root: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    code, error = run(f"run.resume={foreign}", root=image_root)
    assert code == 2
    assert "was not written by resnet_dist" in error


def test_corrupt_checkpoint(run: Run, image_root: Path, trained: Path) -> None:
    path = trained / "checkpoints" / "step_00000001.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    code, error = run(root=image_root)
    assert code == 2
    assert "no checkpoint is left that can be used" in error


def test_too_little_disk(
    run: Run, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: usage)  # a mock: no full disk
    code, error = run(root=image_root)
    assert code == 2
    assert "GiB are free" in error
    assert "checkpoint.keep_last" in error


def test_run_folder_that_is_a_file(run: Run, image_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "occupied"
    path.write_text("x")
    code, error = run(f"run.dir={path}", root=image_root)
    assert code == 2
    assert "cannot be written to" in error
    assert path.read_text() == "x"


def test_dali_missing(run: Run, image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_package, "installed", lambda: None)  # a mock: DALI is installed here
    code, error = run("data.loader=dali", root=image_root)
    assert code == 2
    assert "data.loader=torch" in error


def test_half_an_environment_of_torchrun(
    run: Run, image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    code, error = run(root=image_root)
    assert code == 2
    assert "LOCAL_WORLD_SIZE" in error

"""Checkpoint files and the folder of them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_dist.checkpoint.choice import sync_load
from resnet_dist.checkpoint.files import (
    CorruptCheckpointError,
    decode_checkpoint,
    read_verified,
    write_checkpoint,
)
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config import CheckpointConfig
from resnet_dist.errors import UserError
from resnet_dist.world import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def payload(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.arange(100.0) + step}, "best": {"top1": 0.5}}


def make_manager(folder: Path, keep_last: int = 3) -> CheckpointManager:
    manager = CheckpointManager(folder, CheckpointConfig(keep_last=keep_last))
    manager.open()
    return manager


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(manager: CheckpointManager, *steps: int, best: int | None = None) -> None:
    for step in steps:
        manager.save(payload(step), step=step, is_best=step == best)


def test_round_trip_and_readable_by_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_checkpoint(path, payload(3))
    loaded = decode_checkpoint(read_verified(path), path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["model"]["weight"], torch.arange(100.0) + 3)
    assert torch.load(path, weights_only=True)["step"] == 3
    assert zipfile.ZipFile(path).testzip() is None
    assert names_in(tmp_path) == ["x.pt"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x.pt"
    write_checkpoint(path, payload(1))
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flipped_bit_is_noticed(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(whole) * 8 - 1))
    damaged = bytearray(whole)
    damaged[offset // 8] ^= 1 << offset % 8
    path = tmp_path / "y.pt"
    path.write_bytes(damaged)
    with pytest.raises(CorruptCheckpointError, match=r"y\.pt"):
        read_verified(path)


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_truncation_is_noticed(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "y.pt"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CorruptCheckpointError):
        read_verified(path)


def test_foreign_files_are_rejected(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(CorruptCheckpointError, match="was not written by resnet_dist"):
        read_verified(foreign)
    with pytest.raises(UserError, match="is of format None"):
        decode_checkpoint(foreign.read_bytes(), foreign)
    with pytest.raises(UserError, match="torch cannot read it"):
        decode_checkpoint(b"not a zip", foreign)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    manager = make_manager(tmp_path, keep_last=2)
    save(manager, 1, 2, 3, 4, best=2)
    assert manager.steps() == [3, 4]
    best = manager.folder / "best.pt"
    assert decode_checkpoint(read_verified(best), best)["step"] == 2
    save(manager, 5, best=5)
    assert decode_checkpoint(read_verified(best), best)["step"] == 5
    assert names_in(manager.folder) == ["best.pt", "step_00000004.pt", "step_00000005.pt"]


def test_best_survives_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    manager = make_manager(tmp_path)
    save(manager, 1, best=1)
    assert decode_checkpoint(read_verified(manager.folder / "best.pt"), tmp_path)["step"] == 1


def test_damaged_newest_is_quarantined_and_the_one_before_used(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    save(manager, 1, 2, 3)
    manager.path(3).write_bytes(b"")
    manager.path(2).write_bytes(manager.path(2).read_bytes()[:-1])
    loaded = sync_load(manager, "auto", WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 1
    assert len(loaded.notes) == 2
    assert "step_00000003.pt" in loaded.notes[0]
    assert (manager.folder / "step_00000003.pt.corrupt").exists()
    assert manager.steps() == [1]


def test_nothing_good_left_is_an_error_not_a_new_run(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    save(manager, 1)
    manager.path(1).write_bytes(b"garbage")
    for _ in range(2):  # the second time the file is quarantined already
        with pytest.raises(UserError, match="no checkpoint is left that can be used"):
            sync_load(manager, "auto", WORLD)


def test_a_checkpoint_removed_while_it_is_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock of the moment: the name was listed, and then the file is gone."""
    manager = make_manager(tmp_path)
    save(manager, 1, 2)
    monkeypatch.setattr(CheckpointManager, "steps", lambda _: [1, 2, 3])
    loaded = sync_load(manager, "auto", WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 2
    assert loaded.notes == []


def test_a_checkpoint_that_cannot_be_read_is_an_error_and_stays(tmp_path: Path) -> None:
    """Not damaged, as far as we know: resuming from an older one would throw it away."""
    manager = make_manager(tmp_path)
    save(manager, 1)
    manager.path(2).mkdir()
    with pytest.raises(UserError, match=r"step_00000002\.pt\): cannot be read"):
        sync_load(manager, "auto", WORLD)
    assert manager.steps() == [1, 2]


def test_a_step_quarantined_twice_keeps_both_files(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    save(manager, 1)
    for _ in range(2):
        save(manager, 2)
        manager.path(2).write_bytes(b"")
        assert sync_load(manager, "auto", WORLD) is not None
    names = names_in(manager.folder)
    assert names == ["step_00000001.pt", "step_00000002.pt.corrupt", "step_00000002.pt.corrupt2"]


def test_retention_never_deletes_what_was_just_written(tmp_path: Path) -> None:
    manager = make_manager(tmp_path, keep_last=1)
    save(manager, 9)
    save(manager, 5)  # the run went back
    assert 5 in manager.steps()


def test_each_resume_mode_finds_what_it_promises(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    assert sync_load(manager, "auto", WORLD) is None
    assert sync_load(manager, "never", WORLD) is None
    with pytest.raises(UserError, match="no checkpoint in"):
        sync_load(manager, "required", WORLD)
    with pytest.raises(UserError, match="is no file"):
        sync_load(manager, str(tmp_path / "nowhere.pt"), WORLD)
    save(manager, 1, 2)
    for mode in ("auto", "required"):
        loaded = sync_load(manager, mode, WORLD)
        assert loaded is not None
        assert loaded.payload["step"] == 2
    with pytest.raises(UserError, match="already holds a run"):
        sync_load(manager, "never", WORLD)


def test_a_named_start_gives_way_to_the_runs_own_checkpoints(tmp_path: Path) -> None:
    other, own = make_manager(tmp_path / "other"), make_manager(tmp_path / "own")
    save(other, 7)
    loaded = sync_load(own, str(other.path(7)), WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 7
    save(own, 9)
    loaded = sync_load(own, str(other.path(7)), WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 9
    assert "resuming from one" in loaded.notes[0]


KILLS = [
    ("checkpoint.before_write", 2),
    ("checkpoint.mid_write", 2),
    ("checkpoint.before_fsync", 2),
    ("checkpoint.before_rename", 2),
    ("checkpoint.before_folder_fsync", 3),
    ("checkpoint.after_commit", 3),
    ("checkpoint.before_best", 3),
    ("checkpoint.before_retention", 3),
    ("checkpoint.after_retention", 3),
]


@pytest.mark.parametrize(("name", "newest"), KILLS)
def test_a_kill_in_the_middle_of_a_save_leaves_a_good_checkpoint(
    tmp_path: Path, name: str, newest: int
) -> None:
    """Steps 1 and 2 are saved; the save of step 3 dies at the failpoint, for real."""
    manager = make_manager(tmp_path, keep_last=2)
    save(manager, 1, 2, best=2)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from tests.unit.checkpoint.test_manager import make_manager, save\n"
        "save(make_manager(Path(sys.argv[1]), keep_last=2), 3, best=3)"
    )
    root = str(Path(__file__).parents[3])
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), root],
        env=os.environ | {"RESNET_DIST_FAILPOINT": name},
        check=False,
    )
    assert result.returncode == -9
    loaded = sync_load(make_manager(tmp_path, keep_last=2), "auto", WORLD)
    assert loaded is not None
    assert loaded.notes == []
    assert loaded.payload["step"] == newest
    best = manager.folder / "best.pt"
    assert decode_checkpoint(read_verified(best), best)["step"] in (2, 3)
    assert not list(manager.folder.glob(".*"))

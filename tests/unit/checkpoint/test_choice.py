"""Which checkpoint is used, and what a start never overwrites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from resnet_dist.checkpoint.choice import sync_load
from resnet_dist.errors import UserError
from resnet_dist.run.lock import LostFolderError, own_run_folder
from tests.unit.checkpoint.test_manager import WORLD, make_manager, names_in, save


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("shown", ["best.pt", "quarantined", "ends", "records"])
def test_what_shows_a_run_is_never_begun_anew(tmp_path: Path, resume: str, shown: str) -> None:
    manager = make_manager(tmp_path)
    save(manager, 1, best=1)
    path, best = manager.path(1), manager.folder / "best.pt"
    if shown == "quarantined":
        path.rename(path.with_name(f"{path.name}.corrupt"))
        best.unlink()
    else:
        path.unlink()
        if shown != "best.pt":
            best.unlink()
    if shown == "ends":
        (tmp_path / "ends.jsonl").write_text(json.dumps({"outcome": "finished", "step": 9}) + "\n")
    if shown == "records":
        record = {"step": 20, "checkpoint/write_s": 0.1}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    before = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    with pytest.raises(UserError) as caught:
        sync_load(manager, resume, WORLD)
    assert "give run.dir a new folder" in str(caught.value)
    assert before == {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 20, "train/loss": 1.0}) + "\n")
    assert sync_load(manager, "auto", WORLD) is None
    with pytest.raises(UserError, match="records up to step 20"):
        sync_load(manager, "never", WORLD)


def test_an_evaluation_reads_the_named_file_and_renames_nothing(tmp_path: Path) -> None:
    other, own = make_manager(tmp_path / "other"), make_manager(tmp_path / "own")
    save(other, 7)
    save(own, 8, 9)
    named = sync_load(own, str(other.path(7)), WORLD, may_write=False)
    assert named is not None
    assert named.payload["step"] == 7
    with pytest.raises(UserError, match="is no file"):
        sync_load(own, str(tmp_path / "nowhere.pt"), WORLD, may_write=False)
    own.path(9).write_bytes(b"damaged")
    before = names_in(own.folder)
    newest = sync_load(own, "last", WORLD, may_write=False)
    assert newest is not None
    assert newest.payload["step"] == 8
    assert "step_00000009.pt" in newest.notes[0]
    assert names_in(own.folder) == before


def test_going_back_sets_the_later_ones_aside_and_is_done_once(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    save(manager, 1, 2, 3, best=3)
    loaded = sync_load(manager, str(manager.path(1)), WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 1
    assert "going back to step 1" in loaded.notes[0]
    assert manager.steps() == [1]
    assert "best.pt.abandoned" in names_in(manager.folder)
    save(manager, 2)
    again = sync_load(manager, str(manager.path(1)), WORLD)
    assert again is not None
    assert again.payload["step"] == 2, "a job that is started again must not go back again"


def test_best_is_a_word_and_is_found_at_the_next_start(tmp_path: Path) -> None:
    manager = make_manager(tmp_path, keep_last=1)
    with pytest.raises(UserError, match="is no file"):
        sync_load(manager, "best", WORLD)
    save(manager, 1, 2, 3, best=1)
    assert manager.steps() == [3]
    loaded = sync_load(manager, "best", WORLD)
    assert loaded is not None
    assert loaded.payload["step"] == 1
    assert manager.steps() == [1]
    after = sync_load(manager, "auto", WORLD)
    assert after is not None
    assert after.payload["step"] == 1


def test_nothing_is_written_into_a_folder_that_was_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with own_run_folder(run) as first:
        manager = make_manager(run)
        manager.ownership = first
        save(manager, 1)
        shutil.rmtree(run)
        with pytest.raises(LostFolderError, match="was removed, moved or replaced"):
            save(manager, 2)
        with own_run_folder(run) as second:
            other = make_manager(run)
            other.ownership = second
            save(other, 1, best=1)
            before = names_in(other.folder)
            for step in (2, 3):
                with pytest.raises(LostFolderError):
                    save(manager, step, best=step)
            assert names_in(other.folder) == before


def test_the_owner_is_asked_before_the_file_gets_its_name(tmp_path: Path) -> None:
    """A folder that is replaced while a checkpoint is being written."""
    run = tmp_path / "run"
    with own_run_folder(run) as first:
        manager = make_manager(run)
        manager.ownership = first
        calls = []

        def check() -> None:
            calls.append(1)
            if len(calls) == 2:
                raise LostFolderError("replaced")

        first.check = check  # type: ignore[method-assign]
        with pytest.raises(LostFolderError):
            save(manager, 1)
        assert manager.steps() == []
        assert not list(manager.folder.glob(".*"))

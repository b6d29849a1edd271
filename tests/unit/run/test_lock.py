"""The lock of a run folder: who owns it, and for whom a restarted job waits."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from resnet_dist.errors import UserError
from resnet_dist.run import lock
from resnet_dist.world import World
from tests.clock import FakeClock

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(lock, "time", clock)
    return clock


@contextmanager
def owned_by(folder: Path, job: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder belongs to a process of that job."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job or "none")
    with lock.own_run_folder(folder, job=job):
        yield


def test_the_lock_names_process_host_and_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owned_by(tmp_path, "night-7", monkeypatch):
        owner = lock.owner_of(tmp_path)
        content = json.loads((tmp_path / lock.FILE_NAME).read_text())
    assert owner == lock.Owner(os.getpid(), socket.gethostname(), "night-7")
    assert content == {"pid": owner.pid, "host": owner.host, "job": "night-7"}
    assert str(owner) == f"process {os.getpid()} on {socket.gethostname()}, elastic job night-7"
    assert lock.owner_of(tmp_path) is None, "the file stays, and says nothing any more"


@pytest.mark.parametrize("content", ["", "{", "7", '{"pid": 1}', "process 7 on node1\n"])
def test_a_lock_that_names_nobody_still_locks(tmp_path: Path, content: str) -> None:
    """Also that of an owner which has not written its name yet."""
    with lock.own_run_folder(tmp_path):
        (tmp_path / lock.FILE_NAME).write_text(content)
        assert lock.owner_of(tmp_path) == lock.Owner(None, None)
        with (
            pytest.raises(UserError, match=r"in use by a running training \(an unknown process"),
            lock.own_run_folder(tmp_path),
        ):
            pass


def test_a_shorter_name_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    with lock.own_run_folder(tmp_path, job="a long name of a job"):
        pass
    with lock.own_run_folder(tmp_path):
        assert json.loads((tmp_path / lock.FILE_NAME).read_text())["job"] is None


def test_waits_for_the_former_rank_0_of_its_own_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ExitStack() as former:
        former.enter_context(owned_by(tmp_path, "job", monkeypatch))
        clock.after(1.2, former.close)  # more than two turns
        start = clock.now
        with lock.sync_own_run_folder(tmp_path, ALONE, 2.0):
            assert 1.2 <= clock.now - start < 1.5
    assert capsys.readouterr().err.count("waiting for the former rank 0") == 1


def test_waits_no_longer_than_the_time_out_and_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    start = clock.now
    with (
        owned_by(tmp_path, "job", monkeypatch),
        pytest.raises(UserError, match=r"in use by a running training \(process"),
        lock.sync_own_run_folder(tmp_path, ALONE, 600.0),
    ):
        pass
    assert 600 + lock.GRACE_S <= clock.now - start < 601 + lock.GRACE_S


@pytest.mark.parametrize(("owner", "mine"), [("job", "other"), ("job", None), (None, None)])
def test_another_run_is_rejected_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
    owner: str | None,
    mine: str | None,
) -> None:
    """Also two with torchrun's default id, which says nothing."""
    start = clock.now
    with owned_by(tmp_path, owner, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", mine or "none")
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} on"),
            lock.sync_own_run_folder(tmp_path, ALONE, 600.0),
        ):
            pass
    assert clock.now == start

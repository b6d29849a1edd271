"""`launch.cancel`: whom it asks to stop, and how."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from launch import cancel
from launch.records.attempt import is_cancelled
from resnet_dist.errors import UserError
from resnet_dist.run.lock import FILE_NAME, own_run_folder
from tests.unit.launch.mock_slurm import MockSlurm
from tests.unit.launch.reports.made_up_run import MadeUp


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that would have been sent to processes of this machine."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize(
    ("state", "told"), [("RUNNING", "scancel --signal=USR1 7"), ("PENDING", "scancel 7")]
)
def test_a_job_is_asked_through_slurm(
    tmp_path: Path, mock: MockSlurm, killed: list[tuple[int, int]], state: str, told: str
) -> None:
    run_dir = MadeUp(tmp_path / "run").run_dir
    mock.answers("squeue", f"{state}|None||")
    mock.answers("scancel")
    assert cancel.ask(run_dir)
    assert mock.called()[-1] == told
    assert is_cancelled(run_dir)
    assert killed == []


def test_a_training_without_slurm_gets_the_signal(
    tmp_path: Path, killed: list[tuple[int, int]]
) -> None:
    with own_run_folder(tmp_path, job="a job, on 9, of process 1"):
        assert cancel.ask(tmp_path)
    assert killed == [(os.getpid(), signal.SIGUSR1)]
    assert is_cancelled(tmp_path)


@pytest.mark.parametrize(
    ("content", "owner"),
    [
        ({"pid": 12, "host": "elsewhere", "job": None}, "process 12 on elsewhere;"),
        ({}, "an unknown process;"),
    ],
)
def test_a_training_out_of_reach_is_named(
    tmp_path: Path, killed: list[tuple[int, int]], content: dict[str, object], owner: str
) -> None:
    with own_run_folder(tmp_path):
        (tmp_path / FILE_NAME).write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"is trained by {owner} stop it there"):
            cancel.ask(tmp_path)
    assert killed == []
    assert not is_cancelled(tmp_path)


def test_a_former_owner_gets_no_signal(
    tmp_path: Path, killed: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its number may be another process's by now."""
    line = {"pid": os.getpid(), "host": socket.gethostname(), "job": None}
    (tmp_path / FILE_NAME).write_text(json.dumps(line))
    assert not cancel.ask(tmp_path)
    assert "is neither queued nor running" in capsys.readouterr().out
    assert killed == []

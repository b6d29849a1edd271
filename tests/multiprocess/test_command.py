"""`resnet-dist train` and plain torchrun: how the ends of ranks reach who started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import TINY, torchrun

TIME_LIMIT_S = 200


def command(run_dir: Path, *overrides: str) -> list[str]:
    start = [sys.executable, "-m", "resnet_dist", "train", "--nproc", "2"]
    return [*start, *TINY, f"run.dir={run_dir}", *overrides]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S)


def start_and_wait_for_step(words: list[str], run_dir: Path) -> subprocess.Popen[str]:
    """A run that has recorded at least one step."""
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIME_LIMIT_S
    records = run_dir / "metrics.jsonl"
    while not (records.exists() and records.stat().st_size):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return started


def test_bad_input_of_the_ranks_is_one_line_and_code_2(tmp_path: Path) -> None:
    ended = run(command(tmp_path / "run", f"data.root={tmp_path / 'nowhere'}"))
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"error: data.root ({tmp_path / 'nowhere'}): does not exist")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGINT,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_stop_is_code_75_and_the_next_start_resumes(
    run_root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = command(tmp_path / "run", f"data.root={run_root}", "train.epochs=2000")
    started = start_and_wait_for_step(words, tmp_path / "run")
    started.send_signal(number)
    out, error = started.communicate(timeout=TIME_LIMIT_S)
    assert started.returncode == 75, error
    assert "Traceback" not in error
    assert f"stopped by a signal ({number.name}): the checkpoint was durable" in out
    assert list((tmp_path / "run" / "checkpoints").glob("step_*.pt"))


def test_a_killed_rank_is_named_last(run_root: Path, tmp_path: Path) -> None:
    words = command(tmp_path / "run", f"data.root={run_root}", "train.epochs=2000")
    started = start_and_wait_for_step(words, tmp_path / "run")
    ranks = [
        child
        for child in psutil.Process(started.pid).children()
        if child.environ().get("RANK") == "1"
    ]
    ranks[0].kill()
    _, error = started.communicate(timeout=TIME_LIMIT_S)
    assert started.returncode == 1
    assert error.splitlines()[-1] == "error: rank 1 ended by signal SIGKILL"


@pytest.mark.slow
def test_plain_torchrun_shows_our_message(tmp_path: Path) -> None:
    ended = run(torchrun(2, [*TINY, f"data.root={tmp_path / 'nowhere'}"]))
    assert ended.returncode == 1  # torchrun's own, whatever the ranks return
    ours = f"data.root ({tmp_path / 'nowhere'}): does not exist"
    assert ours in ended.stderr  # the rank's
    assert ours in ended.stderr.split("Root Cause")[1]  # torchrun's summary

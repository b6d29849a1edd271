"""Stop signals: to one rank of four, twice, and before training begins."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from resnet_dist.system.signals import STOP_SIGNALS, STOPPED_EXIT_CODE
from tests.faults.waiting import wait_until
from tests.launch import TINY, newest_checkpoint, train

SLOW = {"RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.1"}
SETTINGS = ["checkpoint.every_steps=7"]


def signal_when(log: Path, text: str, rank: int, *numbers: int) -> threading.Thread:
    """Send the signals to a rank of the run once its log holds `text`."""

    def content() -> str:
        return log.read_text() if log.exists() else ""

    def pids() -> list[str]:
        return re.findall(rf"^pid {rank} (\d+)$", content(), re.MULTILINE)

    def send() -> None:
        wait_until(lambda: bool(pids()) and text in content(), what=f"{text!r} in {log}")
        wait_until(lambda: _catches(int(pids()[0]), numbers[0]), what="a handler for the signal")
        for number in numbers:
            os.kill(int(pids()[0]), number)
            time.sleep(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = re.search(r"^SigCgt:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert mask is not None
    return bool(int(mask.group(1), 16) >> (number - 1) & 1)


def test_a_signal_to_one_rank_of_four_stops_all_with_a_checkpoint(
    run_root: Path, tmp_path: Path
) -> None:
    number = random.choice(STOP_SIGNALS)
    run_dir = tmp_path / "run"
    thread = signal_when(tmp_path / "run.log", "step 2/", 2, number)
    ended = train(4, run_root, run_dir, *SETTINGS, environment=SLOW, check=False)
    thread.join()
    assert ended.codes == [STOPPED_EXIT_CODE] * 4
    step = newest_checkpoint(run_dir)["step"]
    assert 2 <= step < 20
    assert f"stopped at step {step}" in ended.output
    name = signal.Signals(number).name
    found = re.search(
        rf"by a signal \({name}\): the checkpoint was durable ([\d.]+) s", ended.output
    )
    assert found is not None
    assert float(found.group(1)) < 20


def test_a_second_interrupt_stops_at_once(run_root: Path, tmp_path: Path) -> None:
    numbers = signal.SIGINT, signal.SIGINT
    slow = {"RESNET_DIST_FAILPOINT": "step.begin@3-=sleep:30"}
    thread = signal_when(tmp_path / "run.log", "step 2/", 0, *numbers)
    start = time.monotonic()
    ended = train(1, run_root, tmp_path / "run", environment=slow, check=False)
    thread.join()
    assert ended.codes == [128 + signal.SIGINT]
    assert time.monotonic() - start < 25


def test_a_signal_before_training_begins_ends_the_process(run_root: Path, tmp_path: Path) -> None:
    slow = {"RESNET_DIST_FAILPOINT": "resume.before_load@1=sleep:20"}
    thread = signal_when(tmp_path / "run.log", "", 0, signal.SIGUSR1)
    ended = train(1, run_root, tmp_path / "run", environment=slow, check=False)
    thread.join()
    assert ended.codes == [STOPPED_EXIT_CODE]
    assert "stopped by SIGUSR1 while not training" in ended.output


@pytest.mark.parametrize(
    ("nproc", "is_ignored"),
    [
        pytest.param(2, True, marks=pytest.mark.slow),
        (2, False),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
    ],
    ids=["nohup-2", "plain-2", "nohup-1", "plain-1"],
)
def test_a_terminal_that_closes(
    run_root: Path, tmp_path: Path, nproc: int, is_ignored: bool
) -> None:
    """Its SIGHUP reaches the whole group: the run saves and stops, but under nohup it continues."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    words = [f"run.dir={run_dir}", f"data.root={run_root}", "log.tensorboard=false"]
    command = [sys.executable, "-m", "resnet_dist", "train", "--nproc", str(nproc)]

    def hang_up() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)

    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *TINY, *words],
            stdout=file,
            stderr=file,
            env={**os.environ, **SLOW},
            start_new_session=True,
            preexec_fn=hang_up,
        )
    wait_until(lambda: "step 2/" in log.read_text(), what="the second step")
    os.killpg(process.pid, signal.SIGHUP)
    code = process.wait(timeout=100)
    said = log.read_text()
    if is_ignored:
        assert code == 0, said
        assert newest_checkpoint(run_dir)["step"] == 20
    else:
        assert code == STOPPED_EXIT_CODE, said
        assert "SIGHUP: stopping after this step, saving a checkpoint" in said
        assert 2 <= newest_checkpoint(run_dir)["step"] < 20

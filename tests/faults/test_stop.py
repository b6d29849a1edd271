"""Stop signals: to one rank of four, twice, and before training begins."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path

from resnet_dist.system.signals import STOPPED_EXIT_CODE
from tests.launch import newest_checkpoint, train

SLOW = {"RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.1"}
SETTINGS = ["checkpoint.every_steps=7"]


def signal_when(log: Path, text: str, rank: int, *numbers: int) -> threading.Thread:
    """Send the signals to a rank of the run once its log holds `text`."""

    def send() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            content = log.read_text() if log.exists() else ""
            pid = re.search(rf"^pid {rank} (\d+)$", content, re.MULTILINE)
            if pid is not None and text in content:
                for number in numbers:
                    os.kill(int(pid.group(1)), number)
                    time.sleep(0.05)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_signal_to_one_rank_of_four(run_root: Path, tmp_path: Path) -> None:
    number = random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
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


def test_a_signal_before_training_begins(run_root: Path, tmp_path: Path) -> None:
    slow = {"RESNET_DIST_FAILPOINT": "resume.before_load@1=sleep:20"}
    thread = signal_when(tmp_path / "run.log", "", 0, signal.SIGUSR1)
    ended = train(1, run_root, tmp_path / "run", environment=slow, check=False)
    thread.join()
    assert ended.codes == [STOPPED_EXIT_CODE]
    assert "stopped by SIGUSR1 while not training" in ended.output

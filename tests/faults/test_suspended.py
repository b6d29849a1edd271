"""A run that is stopped as a whole and continued later: scontrol suspend, Ctrl-Z, a paused
container."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.waiting import wait_until
from tests.launch import TINY, assert_same_run, records_so_far, torchrun, train

SETTINGS = ["checkpoint.every_steps=2", "dist.timeout_s=6", "faults.watchdog_s=12"]


@pytest.mark.slow
def test_it_ends_in_a_sentence_and_its_restart_is_the_run(run_root: Path, tmp_path: Path) -> None:
    train(2, run_root, tmp_path / "whole", *SETTINGS)
    run_dir, log = tmp_path / "run", tmp_path / "log"
    words = [*TINY, *SETTINGS, f"data.root={run_root}", f"run.dir={run_dir}"]
    command = torchrun(2, words)
    command.insert(command.index("-m", 2), "--max-restarts=2")
    slow = {**os.environ, "RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.3"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=slow, start_new_session=True
        )
        try:
            wait_until(lambda: len(records_so_far(run_dir)) >= 5, what="5 records", timeout_s=90)
            everyone = [psutil.Process(process.pid)]
            everyone += everyone[0].children(recursive=True)
            for each in everyone:
                each.send_signal(signal.SIGSTOP)
            time.sleep(15)
            for each in reversed(everyone):
                each.send_signal(signal.SIGCONT)
            code = process.wait(timeout=150)
        finally:
            process.kill()
    said = log.read_text()
    assert code == 0, said[-6000:]
    if "resuming from" in said:  # they may also have met in time
        assert "error: this run was suspended for " in said
    assert_same_run(tmp_path / "whole", run_dir)

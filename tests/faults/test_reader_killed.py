"""A process that reads samples is killed (out of memory, a full /dev/shm)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults.waiting import wait_until
from tests.launch import TINY, assert_same_run, newest_checkpoint, records_so_far, train

SETTINGS = ["data.num_workers=1", "data.loader=torch", "checkpoint.every_epochs=5"]
SLOW = {**os.environ, "RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.5"}


@pytest.mark.slow
def test_one_rank_saves_and_says_so(run_root: Path, tmp_path: Path) -> None:
    train(1, run_root, tmp_path / "whole", *SETTINGS)
    run_dir, log = tmp_path / "run", tmp_path / "log"
    words = [*TINY, *SETTINGS, f"data.root={run_root}", f"run.dir={run_dir}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "resnet_dist.train", *words],
            stdout=file,
            stderr=file,
            env=SLOW,
            start_new_session=True,
        )
        try:
            wait_until(lambda: len(records_so_far(run_dir)) >= 5, what="5 records", timeout_s=60)
            # The fork server's children.
            for server in psutil.Process(process.pid).children():
                for reader in server.children():
                    reader.kill()
            code = process.wait(timeout=60)
        finally:
            process.kill()
    said = log.read_text()
    assert code == 70, said[-3000:]
    assert "error: data.num_workers: a process that reads samples has ended (" in said
    assert newest_checkpoint(run_dir)["step"] == records_so_far(run_dir)[-1]["step"]
    train(1, run_root, run_dir, *SETTINGS)
    assert_same_run(tmp_path / "whole", run_dir)

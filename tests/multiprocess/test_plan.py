"""A forecast that measures, with two ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # a minute of measuring
def test_a_probe_on_two_ranks(run_root: Path, tmp_path: Path) -> None:
    settings = [f"data.root={run_root}", "train.global_batch_size=16", "data.train_size=32"]
    settings += ["data.eval_size=32", "data.eval_resize_size=36", "dist.device=cpu"]
    command = [sys.executable, "-c", SCRIPT, "--config", "quickstart", "--nproc", "2", *settings]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "on 2 rank(s)" in ended.stdout
    assert "limit" in ended.stdout
    assert ended.stdout.count("images/s on") == 1


SCRIPT = "import sys; from resnet_dist.plan.__main__ import main; sys.exit(main(sys.argv[1:]))"

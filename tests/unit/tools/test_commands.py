"""Every command answers --help without torch, and bad input with one sentence and code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELP = """
import sys
from resnet_dist.{command}.__main__ import main
try:
    main(["--help"])
except SystemExit as ended:
    assert not ended.code
slow = {{"torch", "torchvision", "matplotlib", "nvidia.dali"}} & set(sys.modules)
assert not slow, f"{{slow}} are imported for --help"
"""


@pytest.mark.parametrize(
    "command", ["bench", "doctor", "inspect", "plan", "prepare", "report", "selftest"]
)
def test_help_needs_no_torch(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(command=command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "data.rot=1"], "data.rot (from command line): unknown key"),
        (["bench", "--modes", "--config", "none"], "--config (none): no such file"),
        (["inspect", "/none"], "DIR|CONFIG (/none): no such folder, file or shipped config"),
        (["inspect", "quickstart", "seed=x"], "seed ('x', from command line)"),
        (["prepare", "folder", "/none", "--out=/none"], "SRC (/none): lacks the folder 'train'"),
        (["prepare", "verify", "/none"], "DIR (/none): holds no prepared data set"),
        (["report", "/none"], "/none/metrics.jsonl: cannot be read"),
        (["selftest", "--dir=/proc/none"], "--dir (/proc/none/selftest): cannot be used"),
        (["selftest", "--dir=/proc/none", "seed=x"], "seed ('x', from command line)"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(arguments: list[str], said: str) -> None:
    command, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"resnet_dist.{command}", *rest], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]

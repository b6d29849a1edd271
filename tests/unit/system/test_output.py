"""Output that cannot be written: the program continues, and says so where it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SAY = (
    "import sys\n"
    "from resnet_dist.system.output import keep_output_safe\n"
    "keep_output_safe()\n"
    "for i in range(20000): print('line', i)\n"
    "sys.stdout.flush()\n"
    "print('done', file=sys.stderr)\n"
)


def test_a_reader_that_has_gone_ends_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0
    assert said.splitlines() == [
        "warning: stdout cannot be written (Broken pipe); the run continues",
        "done",
    ]


def test_a_full_disk_under_a_log_ends_nothing() -> None:
    """/dev/full is one."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", SAY], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("No space left on device); the run continues") == 1
    assert ended.stderr.endswith("done\n")


def test_closed_streams_and_letters_that_cannot_be_shown() -> None:
    code = SAY.replace("'line', i", "'Schrödinger', i").replace("20000", "2")
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 0
    assert ended.stdout == b"Schr\\xf6dinger 0\nSchr\\xf6dinger 1\n"
    closed = subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, SAY])
    assert closed.returncode == 0

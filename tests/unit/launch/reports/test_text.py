"""The status of runs as people and programs read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import status
from launch.reports.text import COLUMNS, details, table
from tests.unit.launch.mock_slurm import MockSlurm
from tests.unit.launch.reports.made_up_run import NOW, MadeUp


def test_the_words_for_one_run(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", "RUNNING|None|node[4-5]|10:00:00")
    lines = details(eventful.run_dir, now=NOW).splitlines()
    assert lines[:7] == [
        f"run       {eventful.run_dir}",
        "job       7  RUNNING",
        "nodes     node[4-5]  (time limit in 10:00:00)",
        "step      500 of 1000  epoch 5",
        "loss      1.2500",
        "top1      50.00%",
        "speed     800 images/s, 0:00:30 ago",
    ]
    assert lines[7:9] == [
        "left      0:16:40 at this speed",
        "attempts  3, restarts of workers 2",
    ]
    text = "\n".join(lines[9:])
    assert "node1,node2  failed at step 100: preflight: node2: no room" in text
    assert "torchrun: node1: failed (exitcode: -9)" in text
    assert "left out from then on: node2" in text
    assert "node1,node3  lost: left no record" in text
    assert text.endswith("node4,node5  running")


def test_the_table(eventful: MadeUp, mock: MockSlurm, tmp_path: Path) -> None:
    mock.script(
        "squeue",
        'case "$*" in *" 7 "*) echo "RUNNING|None|node[4-5]|1:00";; *) echo "PENDING|Priority||";;'
        " esac",
    )
    MadeUp(tmp_path / "waiting", "8")
    head, first, second = table([eventful.run_dir, tmp_path / "waiting"]).splitlines()
    assert head.split() == list(COLUMNS)
    cells = ["eventful", "7", "RUNNING", "3+2", "500/1000", "1.2500", "50.00%", "800", "0:16:40"]
    assert first.split()[:9] == cells
    assert "left no record" in first
    assert second.split() == ["waiting", "8", "PENDING", "0", "0", *"----", "Priority"]
    assert first.index("RUNNING") == second.index("PENDING") == head.index("state")


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path, no_slurm: None) -> None:
    del no_slurm
    folders = [MadeUp(tmp_path / name / "seed=1").run_dir for name in ("a", "b")]
    for folder, line in zip(folders, table(folders).splitlines()[1:], strict=True):
        assert line.split()[0] == str(folder)


def test_json_is_for_programs(
    eventful: MadeUp, mock: MockSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    mock.answers("squeue", "RUNNING|None|node[4-5]|10:00:00")
    eventful.record(510, train__loss="NaN", train__step_time_ms=2000.0)
    assert status.main(["--json", str(eventful.run_dir)]) == 0

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    (run,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert run["run_dir"] == str(eventful.run_dir)
    assert (run["state"], run["num_restarts"], len(run["attempts"])) == ("RUNNING", 2, 3)
    assert (run["progress"]["step"], run["progress"]["left_s"]) == (510, 980)
    assert run["progress"]["loss"] == "nan"
    assert run["attempts"][0]["excluded"] == ["node2"]

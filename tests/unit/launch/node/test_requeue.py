"""The end of the batch script: what it writes down, and what it tells Slurm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.node import requeue
from launch.records.attempt import Attempt, AttemptName
from launch.records.json_files import read_json
from tests.unit.launch.mock_slurm import MockSlurm
from tests.unit.launch.node.endings import (
    bad_input,
    bad_node,
    cancelled,
    finished,
    operator_requeue,
    rank_failed,
)
from tests.unit.launch.node.scenarios import CODES, Scenario
from tests.unit.launch.node.story import JOB, Story

Run = Callable[..., int]


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def run(
    tmp_path: Path, story: Story, mock: MockSlurm, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """run(code, *options): the last command of the batch script, after the story; srun's code."""
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main() ends with its process, else
    mock.answers("squeue", "COMPLETING|None|node[1-2]|")
    mock.script(
        "scontrol",
        'case "$*" in\n'
        '*"show job"*) echo "JobId=77 ExcNodeList=node[7-8] JobState=RUNNING" ;;\n'
        '*"show hostnames"*) echo node7; echo node8 ;;\nesac\n',
    )

    def main(code: int, *options: str) -> int:
        story.write(tmp_path)
        number = str(story.name.submission)
        arguments = [str(tmp_path), "--submission", number, "--code", str(code), *options]
        return requeue.main(arguments)

    return main


def told(mock: MockSlurm) -> list[str]:
    """What Slurm was told, besides what it was asked."""
    return [call for call in mock.called() if call.startswith("scontrol ") and "show" not in call]


def written(run_dir: Path, name: str = "001.000") -> dict[str, Any]:
    return read_json(run_dir / "attempts" / name / "end.json") or {}


def test_it_requeues_and_leaves_bad_nodes_out(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm
) -> None:
    assert run(bad_node(story), "--exclude-bad") == 1
    assert told(mock) == [
        "scontrol requeue 77",
        "scontrol update JobId=77 ExcNodeList=node2,node7,node8",
    ]
    end = written(tmp_path)
    assert (end["outcome"], end["is_requeued"], end["excluded"]) == ("failed", True, ["node2"])
    assert end["cause"] == "preflight_failed"


def test_without_the_wish_none_is_left_out(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm
) -> None:
    run(bad_node(story))
    assert mock.called() == ["scontrol requeue 77"]
    assert written(tmp_path)["excluded"] == []


@pytest.mark.parametrize("play", [finished, cancelled, bad_input, operator_requeue])
def test_it_leaves_the_job_alone(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm, play: Scenario
) -> None:
    code = run(play(story), "--exclude-bad")
    assert told(mock) == []
    assert code == CODES[written(tmp_path)["outcome"]]


def test_what_ends_within_the_time_of_grace_is_requeued(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm
) -> None:
    """Slurm, which preempts it, still calls it running, and would not requeue it."""
    mock.answers("squeue", "RUNNING|None|node[1-2]|10:00")
    assert run(operator_requeue(story)) == 0
    assert told(mock) == ["scontrol requeue 77"]
    assert written(tmp_path)["reason"] == "preempted, or told to stop (SIGTERM)"


def test_a_controller_that_does_not_answer_leaves_the_job_to_slurm(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm
) -> None:
    mock.answers("squeue", err="Unable to contact slurm controller", code=1)
    assert run(operator_requeue(story)) == 0
    assert told(mock) == []
    assert written(tmp_path)["is_requeued"] is False


def test_an_element_of_an_array_requeues_itself_alone(
    story: Story, run: Run, mock: MockSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One element has the array's own number; by that, Slurm would requeue all of them."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", JOB)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    run(rank_failed(story))
    assert mock.called() == ["scontrol requeue 77_3"]


def test_an_older_attempt_says_and_does_nothing(
    tmp_path: Path, story: Story, run: Run, mock: MockSlurm
) -> None:
    Attempt(tmp_path, AttemptName(1, 1), 0).enter(0, {})
    assert run(rank_failed(story)) == 0
    assert mock.called() == []
    assert written(tmp_path) == {}


def test_the_restart_count_is_the_attempt(
    tmp_path: Path, story: Story, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    story.name = AttemptName(1, 4)
    assert run(finished(story)) == 0
    assert written(tmp_path, "001.004")["outcome"] == "finished"

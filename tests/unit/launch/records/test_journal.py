"""What an attempt left behind, as it is read from the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.records.attempt import Attempt, AttemptName
from launch.records.ending import Cause, Ending, Outcome, read_ending, write_ending
from launch.records.journal import (
    TaskEnd,
    TaskStart,
    read_attempt,
    read_journal,
    read_notes,
)
from tests.unit.launch.node.endings import finished, torchrun_killed
from tests.unit.launch.node.scenarios import SCENARIOS, Scenario
from tests.unit.launch.node.story import Story

NAME = AttemptName(1, 0)


@pytest.mark.parametrize("play", [each[0] for each in SCENARIOS], ids=lambda play: play.__name__)
def test_the_files_of_an_attempt_say_all_that_happened(tmp_path: Path, play: Scenario) -> None:
    """The verdict reads from a run folder what its tests tell it in memory."""
    story = Story(signal_delay_s=77.0, newest_step=40)
    play(story)
    story.write(tmp_path)
    assert read_journal(tmp_path, story.name) == story.journal()


def test_the_end_of_another_start_does_not_count(tmp_path: Path) -> None:
    """`limited` by an earlier train.max_steps, in the same folder."""
    story = Story()
    finished(story)
    story.write(tmp_path)
    first = story.name
    story.next()
    torchrun_killed(story)
    story.write(tmp_path)
    assert [end.outcome for end in read_attempt(tmp_path, first).training_ends] == ["finished"]
    assert read_attempt(tmp_path, story.name).training_ends == ()


def test_notes_are_kept_by_node_and_sorted_by_time(tmp_path: Path) -> None:
    first, second = (Attempt(tmp_path, NAME, node) for node in (0, 11))
    first.folder.mkdir(parents=True, exist_ok=True)
    second.note("start", job_id="7", hosts=["a", "b"])
    first.note("start", job_id="7", hosts=["a", "b"], host="node1")
    first.note("end", code=0)
    (first.folder / "nodeX.jsonl").write_text('{"event": "start", "time": 0}\n')
    nodes, notes = read_notes(tmp_path, NAME)
    assert nodes == (0, 11)
    assert [(note.node, type(note)) for note in notes] == [
        (11, TaskStart),
        (0, TaskStart),
        (0, TaskEnd),
    ]
    assert notes[1].host == "node1"
    assert notes[0].time <= notes[1].time
    assert read_notes(tmp_path, AttemptName(1, 1)) == ((), ())


def test_what_is_no_note_is_left_out(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, NAME, 0)
    attempt.folder.mkdir(parents=True)
    attempt.note("of a later version", words="?")
    attempt.note("end")  # without its code
    attempt.note("end", code=1)
    (attempt.folder / "node1.jsonl").write_text('{"event": "sta')  # killed in the middle
    nodes, notes = read_notes(tmp_path, NAME)
    assert nodes == (0, 1)
    (note,) = notes
    assert isinstance(note, TaskEnd)
    assert read_attempt(tmp_path, NAME).host_of(1) == "node 1"


def test_endings_of_earlier_attempts_are_read_back(tmp_path: Path) -> None:
    ending = Ending(
        outcome=Outcome.FAILED,
        cause=Cause.PREFLIGHT_FAILED,
        reason="preflight: node2: no room",
        is_requeued=True,
        exclude=("node2",),
        is_setback=True,
    )
    write_ending(tmp_path, NAME, ending, step=7)
    AttemptName(1, 1).folder(tmp_path).mkdir()
    (first, past), (second, none) = read_journal(tmp_path, AttemptName(1, 2)).earlier
    assert (first, second, none) == (NAME, AttemptName(1, 1), None)
    assert past is not None
    assert (past.ending, past.step) == (ending, 7)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"outcome": "failed"}', '{"outcome": "new"}'])
def test_an_ending_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    NAME.folder(tmp_path).mkdir(parents=True)
    (NAME.folder(tmp_path) / "end.json").write_text(content)
    assert read_ending(tmp_path, NAME) is None


def test_an_ending_without_a_cause_has_an_unknown_one(tmp_path: Path) -> None:
    """Written by an earlier version of the launcher."""
    NAME.folder(tmp_path).mkdir(parents=True)
    (NAME.folder(tmp_path) / "end.json").write_text(
        '{"outcome": "stopped", "reason": "Slurm ended it (SIGTERM)", "is_requeued": false, '
        '"is_setback": false, "excluded": [], "step": 3, "time": 1.0}'
    )
    past = read_ending(tmp_path, NAME)
    assert past is not None
    assert past.ending.cause is Cause.UNKNOWN

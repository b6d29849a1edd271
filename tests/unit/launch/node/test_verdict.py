"""The verdict on an attempt: every way to end, without a file or a clock."""

from __future__ import annotations

import dataclasses

import pytest

from launch.node.preflight import conclude
from launch.node.verdict import requeued_while_running, setbacks_in_a_row
from launch.records.attempt import AttemptName
from launch.records.ending import Cause
from launch.records.journal import PreflightReport
from tests.unit.launch.node.endings import (
    bad_node,
    finished,
    operator_requeue,
    preempted_with_warning,
    rank_failed,
    time_limit,
)
from tests.unit.launch.node.scenarios import CODES, ENDLESS, SCENARIOS, Scenario
from tests.unit.launch.node.story import HOSTS, Story


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.mark.parametrize(
    ("play", "outcome", "cause", "words", "is_requeued", "exclude"),
    SCENARIOS,
    ids=[each[0].__name__ for each in SCENARIOS],
)
def test_decide(
    story: Story,
    play: Scenario,
    outcome: str,
    cause: Cause,
    words: str,
    is_requeued: bool,
    exclude: tuple[str, ...],
) -> None:
    ending = story.decided(play(story))
    assert (ending.outcome, ending.cause) == (outcome, cause)
    assert (ending.is_requeued, ending.exclude) == (is_requeued, exclude)
    assert words in ending.reason
    assert ending.code == CODES[outcome]


@pytest.mark.parametrize("play", [each[0] for each in SCENARIOS], ids=lambda play: play.__name__)
def test_the_words_of_messages_decide_nothing(story: Story, play: Scenario) -> None:
    """Whatever ranks, torchrun and the preflight wrote: the same verdict."""
    code = play(story)
    expected = story.decided(code)
    for lines in story.lines.values():
        for line in lines:
            if "message" in line:
                line["message"] = "SIGTERM: time limit, preempted, cancelled, exit code 2"
    story.problems = [dataclasses.replace(each, what="SIGTERM") for each in story.problems]
    found = story.decided(code)
    assert dataclasses.replace(found, reason="") == dataclasses.replace(expected, reason="")


@pytest.mark.parametrize(
    ("delay_s", "left_s", "is_limit"),
    [(120, 179, True), (120, 181, False), (600, 650, True), (10, 100, False), (120, None, False)],
)
def test_the_limit_is_known_by_the_delay(
    story: Story, delay_s: float, left_s: float | None, is_limit: bool
) -> None:
    story.begin().signal("SIGUSR2", left_s=left_s)
    story.end(0)
    story.signal_delay_s = delay_s
    assert story.decided().cause is (Cause.TIME_LIMIT_NEAR if is_limit else Cause.PREEMPTED)
    assert story.decided().is_requeued


def test_a_job_that_still_runs_when_it_was_stopped_is_requeued(story: Story) -> None:
    """Slurm preempts it with a time of grace; else it is Slurm that requeues, or nobody."""
    stopped = story.decided(operator_requeue(story))
    requeued = requeued_while_running(stopped)
    assert (stopped.is_requeued, requeued.is_requeued) == (False, True)
    assert requeued.cause is Cause.ENDED_BY_SLURM
    for play in (finished, rank_failed, time_limit):
        story.next()
        ending = story.decided(play(story))
        assert requeued_while_running(ending) == ending


@pytest.mark.parametrize("play", [each[0] for each in SCENARIOS], ids=lambda play: play.__name__)
def test_nothing_is_requeued_without_end(story: Story, play: Scenario) -> None:
    story.newest_step = 7
    endings = [story.over(play(story), max_failures=3)]
    while endings[-1].is_requeued and len(endings) < 10:
        endings.append(story.over(play(story), max_failures=3))
    if play in ENDLESS and endings[0].is_requeued:
        assert len(endings) == 10
    elif endings[0].is_requeued:
        assert len(endings) == 3
        assert endings[-1].outcome == "failed"
        assert "given up after 3" in endings[-1].reason
        assert "in a row without a step of progress" in endings[-1].reason


@pytest.mark.parametrize("play", [rank_failed, time_limit, bad_node])
def test_with_progress_it_is_requeued(story: Story, play: Scenario) -> None:
    for step in range(10, 20):
        story.newest_step = step
        assert story.over(play(story), max_failures=2).is_requeued


def test_a_time_limit_is_no_failure(story: Story) -> None:
    """Even where none is borne; but the same limit again, without a step, is."""
    story.newest_step = 10
    assert story.over(time_limit(story), max_failures=1).is_requeued
    assert "given up after 2 attempts" in story.over(time_limit(story), max_failures=1).reason


def test_submitted_again_it_has_all_its_chances(story: Story) -> None:
    for _ in range(3):
        last = story.over(rank_failed(story), max_failures=3)
    assert not last.is_requeued
    story.next(AttemptName(2, 0))
    assert story.over(rank_failed(story), max_failures=3).is_requeued
    assert setbacks_in_a_row(story.journal()) == 1


def test_what_the_preflight_concludes_is_what_the_verdict_reads(story: Story) -> None:
    story.begin()
    reports = [PreflightReport(node=0, host="node1", time=0.0, problems=(), gpus=())]
    problems = conclude(reports, hosts=HOSTS, timeout_s=5)
    story.preflight(*((problem.host, problem.what) for problem in problems))
    story.end(1)
    ending = story.decided(1)
    assert "reported nothing within 5 s" in ending.reason
    assert ending.exclude == ("node2",)


def test_what_happens_in_between_is_no_progress(story: Story) -> None:
    story.over(rank_failed(story), max_failures=3)
    story.over(preempted_with_warning(story), max_failures=3)
    for restart in (2, 3, 4):  # the node was lost, no end was written
        story.earlier.append((AttemptName(1, restart), None))
    story.next(AttemptName(1, 6))
    assert story.over(rank_failed(story), max_failures=3).is_requeued
    assert story.over(rank_failed(story), max_failures=3).outcome == "failed"
    assert story.decided(rank_failed(story), max_failures=3).is_requeued is False

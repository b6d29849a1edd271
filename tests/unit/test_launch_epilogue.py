"""What becomes of an attempt: every way to end, as its nodes write it down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launch import epilogue
from launch.attempt import Attempt, AttemptName, read_json, request_cancel, write_json
from launch.epilogue import Ending, judge, newest_step, setbacks_in_a_row, write_end
from launch.preflight import judge as judge_preflight

HOSTS = ("node1", "node2")
JOB = "77"
FIRST = AttemptName(1, 0)


@dataclass
class Story:
    """An attempt of two nodes that is written down event by event."""

    run_dir: Path
    name: AttemptName = FIRST
    nodes: dict[int, Attempt] = field(default_factory=dict)
    was_ended: bool = False
    """Whether the batch script was sent SIGTERM."""

    def begin(self, *nodes: int) -> Story:
        """The tasks of these nodes start (default: both)."""
        for node in nodes or (0, 1):
            self.nodes[node] = Attempt(self.run_dir, self.name, node)
            self.nodes[node].folder.mkdir(parents=True, exist_ok=True)
            self.note(node, "start", job_id=JOB, hosts=list(HOSTS))
        return self

    def note(self, node: int, event: str, **facts: Any) -> None:
        self.nodes[node].note(event, **{"host": HOSTS[node], **facts})

    def signal(self, kind: str, *nodes: int, left_s: float | None = 50_000) -> None:
        for node in nodes or (0, 1):
            self.note(node, "signal", signal=kind, left_s=left_s, is_cancelled=False)

    def end(self, code: int, *nodes: int, **facts: Any) -> None:
        for node in nodes or (0, 1):
            self.note(node, "end", code=code, **facts)

    def fail(self, node: int, rank: int, exit_code: int, message: str) -> None:
        self.note(node, "failure", rank=rank, exit_code=exit_code, message=message)

    def says(self, outcome: str, step: int = 20) -> None:
        """What the trainer's rank 0 appends to ends.jsonl."""
        line = {"outcome": outcome, "step": step, "launch": f"{JOB}.{self.name}"}
        with (self.run_dir / "ends.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def preflight(self, *problems: tuple[str, str]) -> None:
        listed = [{"host": host, "what": what} for host, what in problems]
        write_json(self.nodes[0].folder / "preflight.json", {"problems": listed})

    def judged(self, code: int = 0, *, max_failures: int = 5) -> Ending:
        return judge(
            self.run_dir,
            self.name,
            code=code,
            max_failures=max_failures,
            was_ended=self.was_ended,
        )

    def over(self, code: int = 0, **limits: int) -> Ending:
        """Judged, and written down as the epilogue does; the next attempt follows."""
        ending = self.judged(code, **limits)
        write_end(self.run_dir, self.name, ending, ending.exclude)
        self.name = AttemptName(self.name.submission, self.name.restart + 1)
        self.nodes = {}
        return ending

    def checkpoint(self, step: int) -> None:
        path = self.run_dir / "checkpoints" / f"step_{step:09d}.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def finished(story: Story) -> int:
    story.begin().says("finished")
    story.end(0)
    return 0


def limited(story: Story) -> int:
    story.begin().says("limited")
    story.end(0)
    return 0


def finished_and_then_killed(story: Story) -> int:
    """A node is lost, a signal comes, workers start again, after the last step was saved."""
    story.begin().says("finished")
    story.says("stopped")
    story.signal("SIGTERM", 0)
    story.end(-9, 0)
    return 137


def time_limit(story: Story) -> int:
    story.begin().signal("SIGUSR2", left_s=118)
    story.says("stopped")
    story.end(0)
    return 0


def time_limit_and_too_slow(story: Story) -> int:
    """Slurm's SIGTERM at the limit, before the tasks had ended."""
    story.begin().signal("SIGUSR2", left_s=118)
    story.signal("SIGTERM", left_s=0)
    return 137


def time_limit_before_training(story: Story) -> int:
    """During the preflight: nobody asked torchrun, no trainer said anything."""
    story.begin().signal("SIGUSR2", left_s=100)
    story.end(0)
    return 0


def preempted_with_warning(story: Story) -> int:
    story.begin().signal("SIGUSR2")
    story.says("stopped")
    story.end(0)
    return 0


def preempted_with_both(story: Story) -> int:
    """GraceTime=0: all signals at once, and Slurm requeues."""
    story.begin().signal("SIGUSR2")
    story.signal("SIGTERM")
    story.says("stopped")
    story.end(0)
    return 0


def preempted_and_killed(story: Story) -> int:
    story.begin().signal("SIGUSR2")
    story.signal("SIGTERM")
    return 137


def operator_requeue(story: Story) -> int:
    story.begin().signal("SIGTERM")
    story.says("stopped")
    story.end(0)
    return 0


def operator_requeue_kills_torchrun(story: Story) -> int:
    """KillWait is over before the workers are."""
    story.begin().signal("SIGTERM")
    story.end(-9)
    return 137


def cancelled_by_scancel_while_starting(story: Story) -> int:
    """Workers that are still importing die of the signal, and torchrun says so at once."""
    story.begin().signal("SIGTERM")
    story.fail(0, 0, -15, "Signal 15 (SIGTERM) received by PID 12")
    story.end(1)
    return 1


def cancelled(story: Story) -> int:
    request_cancel(story.run_dir)
    story.begin().signal("SIGUSR1")
    story.says("stopped")
    story.end(0)
    return 0


def cancelled_and_it_failed(story: Story) -> int:
    request_cancel(story.run_dir)
    story.begin().signal("SIGUSR1")
    story.end(1)
    return 1


def worker_signalled(story: Story) -> int:
    story.begin().says("stopped")
    story.end(0)
    return 0


def user_signal(story: Story) -> int:
    """scancel --signal=USR1 by hand."""
    story.begin().signal("SIGUSR1")
    story.says("stopped")
    story.end(0)
    return 0


def torchrun_killed(story: Story) -> int:
    """The other node's task is ended by srun because of it."""
    story.begin().end(-9, 1)
    story.signal("SIGTERM", 0)
    story.end(143, 0, time=time.time() + 3)
    return 137


def torchrun_killed_by_an_odd_signal(story: Story) -> int:
    story.begin().end(-40, 0)
    story.end(0, 1)
    return 1


def rank_failed(story: Story) -> int:
    """Rank 3 found the fault; rank 2 was ended by torchrun, ranks 0 and 1 lost their peers."""
    story.begin().fail(1, 2, -15, "Signal 15 (SIGTERM) received by PID 12")
    story.fail(1, 3, 1, "Traceback ...\nOSError: disk on fire")
    story.end(1, 1)
    story.fail(0, 0, 1, "RuntimeError: Connection closed by peer")
    story.end(1, 0)
    return 1


def rank_killed(story: Story) -> int:
    """Once too often."""
    story.begin().fail(0, 1, -9, "Signal 9 (SIGKILL) received by PID 12")
    story.end(1, 0)
    return 1


def bad_input(story: Story) -> int:
    story.begin().fail(0, 0, 2, "optim.lr (-1): must be positive")
    story.end(1)
    return 1


def bad_node(story: Story) -> int:
    story.begin().preflight(("node2", "/dev/shm: 0.01 GiB are free, 0.25 GiB are needed"))
    story.end(1)
    return 1


def nowhere_the_data(story: Story) -> int:
    """No node is to blame: left out one after the other, none would be left."""
    what = "/data/train: cannot be listed (No such file or directory)"
    story.begin().preflight(("node1", what), ("node2", what))
    story.end(1)
    return 1


def silent_task(story: Story) -> int:
    story.begin().signal("SIGTERM", 0)  # by srun, as the other was killed
    story.end(143, 0, time=time.time() + 5)
    return 137


def cancelled_and_killed_before_it_was_noted(story: Story) -> int:
    """Only the batch script lived long enough to hear SIGTERM."""
    story.begin().was_ended = True
    return 137


def limit_without_a_warning(story: Story) -> int:
    """Slurm itself does not requeue after that."""
    story.begin().signal("SIGTERM", left_s=0)
    story.was_ended = True
    story.end(0)
    return 0


def before_any_node(story: Story) -> int:
    del story
    return 213


def slow_to_stop(story: Story) -> int:
    """torchrun is told to end what did not save in time."""
    story.begin().signal("SIGUSR2", left_s=118)
    story.end(143)
    return 1


def wordless(story: Story) -> int:
    story.begin().end(0)
    return 0


def srun_failed(story: Story) -> int:
    story.begin().end(0)
    return 9


Scenario = Callable[[Story], int]
SCENARIOS: list[tuple[Scenario, str, str, bool, tuple[str, ...]]] = [
    (finished, "finished", "finished at step 20", False, ()),
    (limited, "finished", "finished at step 20", False, ()),
    (finished_and_then_killed, "finished", "finished at step 20", False, ()),
    (time_limit, "stopped", "the time limit was near (SIGUSR2)", True, ()),
    (time_limit_and_too_slow, "stopped", "the time limit was near (SIGUSR2)", True, ()),
    (time_limit_before_training, "stopped", "the time limit was near (SIGUSR2)", True, ()),
    (preempted_with_warning, "stopped", "preempted (SIGUSR2)", True, ()),
    (preempted_with_both, "stopped", "preempted (SIGUSR2)", False, ()),
    (preempted_and_killed, "stopped", "preempted (SIGUSR2)", False, ()),
    (operator_requeue, "stopped", "Slurm ended it (SIGTERM)", False, ()),
    (operator_requeue_kills_torchrun, "stopped", "Slurm ended it (SIGTERM)", False, ()),
    (cancelled_by_scancel_while_starting, "stopped", "Slurm ended it (SIGTERM)", False, ()),
    (cancelled_and_killed_before_it_was_noted, "stopped", "Slurm ended it (SIGTERM)", False, ()),
    (limit_without_a_warning, "stopped", "the time limit was reached (SIGTERM)", True, ()),
    (cancelled, "cancelled", "stopped by the user (launch.cancel)", False, ()),
    (cancelled_and_it_failed, "cancelled", "stopped by the user (launch.cancel)", False, ()),
    (worker_signalled, "stopped", "stopped by a signal to a worker", True, ()),
    (user_signal, "stopped", "stopped by SIGUSR1", True, ()),
    (torchrun_killed, "failed", "torchrun on node2 was killed by SIGKILL", True, ()),
    (torchrun_killed_by_an_odd_signal, "failed", "was killed by signal 40", True, ()),
    (rank_failed, "failed", "rank 3 on node2: OSError: disk on fire", True, ()),
    (rank_killed, "failed", "rank 1 on node1: Signal 9 (SIGKILL)", True, ()),
    (bad_input, "refused", "rank 0 on node1: optim.lr (-1): must be positive", False, ()),
    (bad_node, "failed", "preflight: node2: /dev/shm: 0.01 GiB are", True, ("node2",)),
    (nowhere_the_data, "failed", "preflight: node1: /data/train: cannot be", True, ()),
    (silent_task, "failed", "the task on node2 ended without a word", True, ()),
    (before_any_node, "failed", "srun ended with code 213 before any node began", True, ()),
    (slow_to_stop, "failed", "on node1 did not stop in time after SIGUSR2", True, ()),
    (wordless, "failed", "ended well, but the training did not say so", True, ()),
    (srun_failed, "failed", "srun ended with code 9", True, ()),
]
CODES = {"finished": 0, "stopped": 0, "cancelled": 0, "failed": 1, "refused": 2}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each[0].__name__)
def test_judge(story: Story, scenario: tuple[Scenario, str, str, bool, tuple[str, ...]]) -> None:
    play, outcome, words, is_requeued, exclude = scenario
    ending = story.judged(play(story))
    assert (ending.outcome, ending.is_requeued, ending.exclude) == (outcome, is_requeued, exclude)
    assert words in ending.reason
    assert ending.code == CODES[outcome]


def test_the_end_of_another_start_does_not_count(story: Story) -> None:
    """`limited` by an earlier train.max_steps, in the same folder."""
    finished(story)
    assert story.over().outcome == "finished"
    assert "torchrun on node2 was killed" in story.judged(torchrun_killed(story)).reason


@pytest.mark.parametrize(
    ("delay_s", "left_s", "is_limit"),
    [(120, 179, True), (120, 181, False), (600, 650, True), (10, 100, False), (120, None, False)],
)
def test_the_limit_is_known_by_the_delay(
    story: Story, delay_s: int, left_s: float | None, is_limit: bool
) -> None:
    story.begin().signal("SIGUSR2", left_s=left_s)
    story.end(0)
    folder = story.run_dir / "submissions" / "001"
    folder.mkdir(parents=True)
    write_json(folder / "submission.json", {"cluster": {"signal_delay_s": delay_s}})
    assert ("time limit" in story.judged().reason) == is_limit
    assert story.judged().is_requeued


# Whatever happens without progress again and again comes to an end by itself, unless somebody
# outside does it: preempts, requeues, signals.
ENDLESS = {
    preempted_with_warning,
    preempted_with_both,
    preempted_and_killed,
    operator_requeue,
    operator_requeue_kills_torchrun,
    worker_signalled,
    user_signal,
}


@pytest.mark.parametrize("play", [each[0] for each in SCENARIOS], ids=lambda play: play.__name__)
def test_nothing_is_requeued_for_ever(story: Story, play: Scenario) -> None:
    story.checkpoint(7)
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
def test_with_progress_it_goes_on(story: Story, play: Scenario) -> None:
    for step in range(10, 20):
        story.checkpoint(step)
        assert story.over(play(story), max_failures=2).is_requeued


def test_a_time_limit_is_no_failure(story: Story) -> None:
    """Even where none is borne; but the same limit again, without a step, is."""
    story.checkpoint(10)
    assert story.over(time_limit(story), max_failures=1).is_requeued
    assert "given up after 2 attempts" in story.over(time_limit(story), max_failures=1).reason


def test_what_happens_in_between_is_no_progress(story: Story) -> None:
    story.over(rank_failed(story), max_failures=3)
    story.over(preempted_with_warning(story), max_failures=3)
    story.name = AttemptName(1, 5)  # 2 to 4: the node was lost, no end was written
    story.begin()
    story.nodes = {}
    story.name = AttemptName(1, 6)
    assert story.over(rank_failed(story), max_failures=3).is_requeued
    assert story.over(rank_failed(story), max_failures=3).outcome == "failed"
    assert story.judged(rank_failed(story), max_failures=3).is_requeued is False


def test_submitted_again_it_has_all_its_chances(story: Story) -> None:
    for _ in range(3):
        last = story.over(rank_failed(story), max_failures=3)
    assert not last.is_requeued
    story.name = AttemptName(2, 0)
    assert story.over(rank_failed(story), max_failures=3).is_requeued
    assert setbacks_in_a_row(story.run_dir, before=story.name, step=0) == 1


def test_the_newest_step_is_that_of_whole_checkpoints(story: Story) -> None:
    assert newest_step(story.run_dir) == 0
    for step in (5, 40, 300):
        story.checkpoint(step)
    for name in ("best.pt", "step_abc.pt", ".step_000000900.pt.12.tmp", "step_000000900.pt.bad"):
        (story.run_dir / "checkpoints" / name).touch()
    assert newest_step(story.run_dir) == 300


def test_a_verdict_of_the_preflight_is_what_the_epilogue_reads(story: Story) -> None:
    story.begin()
    reports = [{"host": "node1", "node": 0, "problems": [], "gpus": []}]
    problems = judge_preflight(reports, hosts=HOSTS, timeout_s=5)
    story.preflight(*((line["host"], line["what"]) for line in problems))
    story.end(1)
    ending = story.judged(1)
    assert "said nothing within 5 s" in ending.reason
    assert ending.exclude == ("node2",)


@pytest.fixture
def mock_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A MOCK of scontrol, a shell script, that writes down how it was called: to this file."""
    calls = tmp_path / "calls"
    path = tmp_path / "mock" / "scontrol"
    path.parent.mkdir()
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in\n'
        '*"show job"*) echo "JobId=77 ExcNodeList=node[7-8] JobState=RUNNING" ;;\n'
        '*"show hostnames"*) echo node7; echo node8 ;;\nesac\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main() ends with its process, else
    calls.touch()
    return calls


def run_epilogue(story: Story, code: int, *options: str) -> int:
    number = str(story.name.submission)
    arguments = [str(story.run_dir), "--submission", number, "--code", str(code), *options]
    return epilogue.main(arguments)


def test_it_requeues_and_leaves_bad_nodes_out(story: Story, mock_scontrol: Path) -> None:
    assert run_epilogue(story, bad_node(story), "--exclude-bad") == 1
    calls = mock_scontrol.read_text().splitlines()
    assert calls[-2:] == ["requeue 77", "update JobId=77 ExcNodeList=node2,node7,node8"]
    end = read_json(story.run_dir / "attempts" / "001.000" / "end.json") or {}
    assert (end["outcome"], end["is_requeued"], end["excluded"]) == ("failed", True, ["node2"])


def test_without_the_wish_none_is_left_out(story: Story, mock_scontrol: Path) -> None:
    run_epilogue(story, bad_node(story))
    assert mock_scontrol.read_text() == "requeue 77\n"


@pytest.mark.parametrize("play", [finished, cancelled, bad_input, operator_requeue])
def test_it_leaves_the_job_alone(story: Story, mock_scontrol: Path, play: Scenario) -> None:
    code = run_epilogue(story, play(story), "--exclude-bad")
    assert mock_scontrol.read_text() == ""
    end = read_json(story.run_dir / "attempts" / "001.000" / "end.json") or {}
    assert code == CODES[end["outcome"]]


def test_an_element_of_an_array_requeues_itself_alone(
    story: Story, mock_scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One element has the array's own number; by that, Slurm would requeue all of them."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", JOB)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    run_epilogue(story, rank_failed(story))
    assert mock_scontrol.read_text() == "requeue 77_3\n"


def test_an_older_attempt_says_and_does_nothing(story: Story, mock_scontrol: Path) -> None:
    Attempt(story.run_dir, AttemptName(1, 1), 0).enter(0, {})
    assert run_epilogue(story, rank_failed(story)) == 0
    assert mock_scontrol.read_text() == ""
    assert not (story.run_dir / "attempts" / "001.000" / "end.json").exists()


def test_the_restart_count_is_the_attempt(
    story: Story, mock_scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del mock_scontrol
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    story.name = AttemptName(1, 4)
    assert run_epilogue(story, finished(story)) == 0
    assert (story.run_dir / "attempts" / "001.004" / "end.json").exists()

"""What `launch.status` makes of run folders and of what Slurm says, or does not say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch import runs, status
from launch.attempt import Attempt, AttemptName, request_cancel, write_json
from launch.epilogue import Ending, write_end
from resnet_dist.errors import UserError
from resnet_dist.run.lock import own_run_folder
from tests.unit.mock_slurm import MockSlurm, mock_slurm


@pytest.fixture
def mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MockSlurm:
    return mock_slurm(tmp_path, monkeypatch)


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


class MadeUp:
    """A run folder that is written event by event."""

    def __init__(self, run_dir: Path, job_id: str | None = "7") -> None:
        run_dir.mkdir(parents=True)
        self.run_dir, self.job_id = run_dir, job_id
        self.submit(1)

    def submit(self, number: int) -> None:
        folder = runs.submission_folder(self.run_dir, number)
        folder.mkdir(parents=True)
        cluster: dict[str, Any] = {}
        runs.Submission(
            self.run_dir, number, self.job_id, folder, "resnet_dist.train", folder, cluster, 1.0
        ).write()

    def begin(self, name: str, *hosts: str, starts: int = 1) -> Attempt:
        """An attempt whose trainer was started so often."""
        attempt = Attempt(self.run_dir, AttemptName.parse(name), 0)
        attempt.enter(0, {})
        attempt.note("start", job_id=self.job_id or "local", hosts=list(hosts or ("node1",)))
        line = {"launch": f"{self.job_id or 'local'}.{name}", "num_steps": 1000}
        with (self.run_dir / "starts.jsonl").open("a") as file:
            file.write((json.dumps(line) + "\n") * starts)
        return attempt

    def end(self, name: str, outcome: str, reason: str, *exclude: str) -> None:
        ending = Ending(outcome, reason, outcome in ("failed", "stopped"))
        write_end(self.run_dir, AttemptName.parse(name), ending, exclude)

    def says(self, outcome: str) -> None:
        (self.run_dir / "ends.jsonl").write_text(json.dumps({"outcome": outcome}) + "\n")

    def record(self, step: int, **values: Any) -> None:
        named = {key.replace("__", "/"): value for key, value in values.items()}
        line = {"step": step, "epoch": step / 100, **named, "time": time.time() - 30}
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def checkpoint(self, step: int) -> None:
        path = self.run_dir / "checkpoints" / f"step_{step}.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()


@pytest.fixture
def eventful(tmp_path: Path) -> MadeUp:
    """Restarts of workers, a bad node, a lost node, and now it runs."""
    made = MadeUp(tmp_path / "eventful")
    attempt = made.begin("001.000", "node1", "node2", starts=3)
    attempt.note("worker", text="failed (exitcode: -9) local_rank: 1", host="node1")
    attempt.note("worker", text="failed (exitcode: -9) local_rank: 1", host="node1")
    made.checkpoint(100)
    made.end("001.000", "failed", "preflight: node2: no room", "node2")
    made.begin("001.001", "node1", "node3")
    made.begin("001.002", "node4", "node5")
    made.record(400, val__top1=0.5)
    made.record(500, train__loss=1.25, train__images_per_second=800.0, train__step_time_ms=2000.0)
    return made


def test_a_run_with_a_past(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", "RUNNING|None|node[4-5]|10:00:00")
    mock.answers("sacct", "REQUEUED|node[1-2]\nNODE_FAIL|node[1,3]\nRUNNING|node[4-5]")
    found = status.run_status(eventful.run_dir)
    assert (found.job_id, found.state, found.reason) == ("7", "RUNNING", "")
    assert (found.nodes, found.time_left, found.num_restarts) == ("node[4-5]", "10:00:00", 2)
    first, second, third = found.attempts
    assert (first.outcome, first.step, first.restarts) == ("failed", 100, 2)
    assert first.restart_reasons == ["node1: failed (exitcode: -9) local_rank: 1"]
    assert first.excluded == ["node2"]
    assert first.hosts == ["node1", "node2"]
    assert (second.outcome, second.step, second.restarts) == ("lost", None, 0)
    assert second.reason.endswith("were killed (Slurm: NODE_FAIL)")
    assert (third.outcome, third.reason) == ("running", "")


def test_the_words_for_one_run(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", "RUNNING|None|node[4-5]|10:00:00")
    lines = status.details(eventful.run_dir).splitlines()
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
    assert "node1,node3  lost: left no word" in text
    assert text.endswith("node4,node5  running")


def test_the_table(eventful: MadeUp, mock: MockSlurm, tmp_path: Path) -> None:
    mock.script(
        "squeue",
        'case "$*" in *" 7 "*) echo "RUNNING|None|node[4-5]|1:00";; *) echo "PENDING|Priority||";;'
        " esac",
    )
    MadeUp(tmp_path / "waiting", "8")
    head, first, second = status.table([eventful.run_dir, tmp_path / "waiting"]).splitlines()
    assert head.split() == list(status._COLUMNS)
    cells = ["eventful", "7", "RUNNING", "3+2", "500/1000", "1.2500", "50.00%", "800", "0:16:40"]
    assert first.split()[:9] == cells
    assert "left no word" in first
    assert second.split() == ["waiting", "8", "PENDING", "0", "0", *"----", "Priority"]
    assert first.index("RUNNING") == second.index("PENDING") == head.index("state")


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path, no_slurm: None) -> None:
    del no_slurm
    folders = [MadeUp(tmp_path / name / "seed=1").run_dir for name in ("a", "b")]
    for folder, line in zip(folders, status.table(folders).splitlines()[1:], strict=True):
        assert line.split()[0] == str(folder)


def test_without_slurm_the_folder_tells(eventful: MadeUp, no_slurm: None) -> None:
    del no_slurm
    found = status.run_status(eventful.run_dir)
    assert (found.state, found.attempts[2].outcome) == ("UNKNOWN", "unknown")
    assert found.attempts[1].outcome == "lost"
    with own_run_folder(eventful.run_dir):
        found = status.run_status(eventful.run_dir)
        assert found.state == "RUNNING"
        assert f"process {os.getpid()} on" in found.reason
        assert found.attempts[2].outcome == "running"
    eventful.says("finished")
    assert status.run_status(eventful.run_dir).state == "FINISHED"


def test_a_controller_that_cannot_be_reached(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", err="Unable to contact slurm controller", code=1)
    found = status.run_status(eventful.run_dir)
    assert found.state == "UNKNOWN"  # and not LOST: it may well run
    assert found.attempts[2].outcome == "unknown"
    assert "Slurm could not be asked: squeue: Unable to contact slurm controller" in found.reason
    assert found.progress.step == 500
    assert "UNKNOWN" in status.table([eventful.run_dir])


@pytest.mark.parametrize(
    ("last", "says", "slurm", "state", "reason"),
    [
        (("finished", "finished at step 9"), "finished", "COMPLETED", "FINISHED", ""),
        (("finished", "at 9"), "limited", "COMPLETED", "FINISHED", "train.max_steps is reached"),
        (("failed", "given up"), None, "FAILED", "FAILED", "given up"),
        (("refused", "bad lr"), None, "FAILED", "REFUSED", "bad lr"),
        (("stopped", "time limit"), "stopped", None, "STOPPED", "time limit"),
        (("stopped", "Slurm ended it (SIGTERM)"), "stopped", "CANCELLED", "CANCELLED", "SIGTERM"),
        (None, None, "TIMEOUT", "TIMEOUT", "left no word"),
        (None, None, None, "LOST", "left no word"),
    ],
)
def test_the_state_of_a_run_that_has_ended(
    tmp_path: Path,
    mock: MockSlurm,
    last: tuple[str, str] | None,
    says: str | None,
    slurm: str | None,
    state: str,
    reason: str,
) -> None:
    made = MadeUp(tmp_path / "run")
    made.begin("001.000")
    if last is not None:
        made.end("001.000", *last)
    if says is not None:
        made.says(says)
    if slurm is not None:
        mock.answers("sacct", f"{slurm}|node1")
    found = status.run_status(made.run_dir)
    assert found.state == state
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)
    assert (found.nodes, found.time_left) == ("", "")


def test_a_finished_run_is_finished_whatever_slurm_says(tmp_path: Path, mock: MockSlurm) -> None:
    made = MadeUp(tmp_path / "run")
    made.says("finished")
    mock.answers("sacct", "NODE_FAIL|node1")
    assert status.run_status(made.run_dir).state == "FINISHED"


def test_cancelled(tmp_path: Path, mock: MockSlurm) -> None:
    del mock
    made = MadeUp(tmp_path / "run")
    request_cancel(made.run_dir)
    assert status.run_status(made.run_dir).state == "CANCELLED"


def test_a_local_run_that_was_killed(tmp_path: Path, mock: MockSlurm) -> None:
    made = MadeUp(tmp_path / "run", None)
    made.begin("001.000")
    found = status.run_status(made.run_dir)
    assert (found.job_id, found.state, found.attempts[0].outcome) == (None, "LOST", "lost")
    assert mock.called() == []


def test_a_folder_that_holds_nothing_yet(tmp_path: Path, no_slurm: None) -> None:
    del no_slurm
    found = status.run_status(tmp_path)
    assert (found.job_id, found.state, found.attempts) == (None, "UNKNOWN", [])
    assert "step      0" in status.details(tmp_path)


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


def test_runs_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/: holds no submitted run"):
        status.find_runs([])
    assert status.main([]) == 2
    assert capsys.readouterr().err.startswith("error: runs/")
    MadeUp(Path("runs/b"))
    sweep = MadeUp(Path("runs/a")).run_dir
    MadeUp(sweep / "seed=1")
    MadeUp(sweep / "seed=2")
    write_json(sweep / "sweep.json", {"runs": ["seed=1", "seed=2"]})
    (tmp_path / "runs" / "other").mkdir()
    found = [str(path) for path in status.find_runs([])]
    assert found == ["runs/a/seed=1", "runs/a/seed=2", "runs/b"]
    assert [str(path) for path in status.find_runs(["runs/b"])] == ["runs/b"]
    with pytest.raises(UserError, match="no such folder"):
        status.find_runs(["runs/c"])

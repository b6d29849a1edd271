"""A run folder as the launcher sees it, its logs, and the copy of the code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import follow, logs, runs
from launch.attempt import write_json
from launch.cluster import ClusterConfig
from launch.snapshot import copy_code
from resnet_dist.config.load import shipped_configs
from resnet_dist.errors import UserError
from resnet_dist.run.folder import versions
from resnet_dist.run.lock import own_run_folder


def write_records(run_dir: Path, *records: dict[str, Any], end: str = "") -> None:
    run_dir.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(text + end)


def record(step: int, **values: Any) -> dict[str, Any]:
    named = {key.replace("__", "/"): value for key, value in values.items()}
    return {"step": step, "epoch": step / 100, **named, "time": 1e9 + step}


def test_progress_is_the_last_value_of_each(tmp_path: Path) -> None:
    train: dict[str, Any] = {"train__images_per_second": 100.0, "train__step_time_ms": 500.0}
    write_records(
        tmp_path,
        record(100, train__loss=3.0, **train),
        record(100, val__top1=0.25),
        record(150, train__loss=2.5, **train),
        end='{"step": 200, "train/lo',
    )
    (tmp_path / "starts.jsonl").write_text('{"num_steps": 900}\n{"num_steps": 1000}\n{"num_st')
    found = runs.progress(tmp_path)
    assert found == runs.Progress(150, 1000, 1.5, 2.5, 0.25, 100.0, 0.5, 1e9 + 150)
    assert found.left_s == 425
    assert runs.Progress(step=5, num_steps=4, step_time_s=1.0).left_s == 0


def test_progress_of_nothing(tmp_path: Path) -> None:
    assert runs.progress(tmp_path) == runs.Progress()
    assert runs.Progress().left_s is None
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    assert runs.progress(tmp_path) == runs.Progress()


def test_progress_beside_damage(tmp_path: Path) -> None:
    write_records(tmp_path, record(1, train__loss=1.0), end='\x00\x00\n7\n[1]\n{"a": \n')
    assert runs.progress(tmp_path).step == 1


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """JSON has none: the recorder writes texts."""
    write_records(tmp_path, record(1, train__loss="NaN", train__images_per_second="Infinity"))
    found = runs.progress(tmp_path)
    assert f"{found.loss:.4f} {found.images_per_second:.0f}" == "nan inf"


def test_an_evaluation_long_ago_is_found(tmp_path: Path) -> None:
    """ImageNet: 5,000 steps an epoch, a record every 10."""
    tags = {f"train__value{i}": 0.123456789 for i in range(8)}
    many = [record(step, train__loss=0.123456789, **tags) for step in range(100, 7000, 10)]
    write_records(tmp_path, record(90, val__top1=0.5), *many)
    found = runs.progress(tmp_path)
    assert (found.step, found.top1) == (6990, 0.5)


def test_only_the_end_of_a_long_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_TAIL_BYTES", 200)
    write_records(tmp_path, record(1, val__top1=0.5), *(record(step) for step in range(2, 50)))
    found = runs.progress(tmp_path)
    assert (found.step, found.top1) == (49, None)


def test_who_holds_the_lock(tmp_path: Path) -> None:
    assert runs.lock_owner(tmp_path) is None
    with own_run_folder(tmp_path):
        owner = runs.lock_owner(tmp_path)
        assert owner is not None
        assert f"process {os.getpid()} on " in owner
    assert runs.lock_owner(tmp_path) is None  # the file is still there
    assert (tmp_path / "run.lock").exists()


def test_asking_for_the_owner_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("process 1 on nowhere")
    assert runs.lock_owner(tmp_path) is None
    with own_run_folder(tmp_path):
        pass


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\): no such folder; give a run folder"):
        runs.expand(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run"):
        runs.expand(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such folder"):
        runs.expand(tmp_path / "file")


def test_what_a_folder_stands_for(tmp_path: Path) -> None:
    write_records(tmp_path / "run", record(1))
    assert runs.expand(tmp_path / "run") == [tmp_path / "run"]
    (tmp_path / "new" / "submissions").mkdir(parents=True)
    assert runs.expand(tmp_path / "new") == [tmp_path / "new"]
    write_json(tmp_path / "new" / "sweep.json", {"runs": ["a=1", "a=2"]})
    assert runs.expand(tmp_path / "new") == [tmp_path / "new" / name for name in ("a=1", "a=2")]


def test_numbers_of_submissions(tmp_path: Path) -> None:
    assert runs.next_number(tmp_path) == 1
    for name in ("001", "009", "010", "x", ".hidden"):
        (tmp_path / "submissions" / name).mkdir(parents=True)
    assert runs.next_number(tmp_path) == 11
    for name in ("099", "1000"):
        (tmp_path / "submissions" / name).mkdir()
    assert runs.next_number(tmp_path) == 1001


def submission(run_dir: Path, number: int = 1, job_id: str | None = "7") -> runs.Submission:
    folder = runs.submission_folder(run_dir, number)
    folder.mkdir(parents=True, exist_ok=True)
    made = runs.Submission(
        run_dir=run_dir,
        number=number,
        job_id=job_id,
        code=folder / "code",
        module="resnet_dist.train",
        slurm_folder=folder / "slurm",
        cluster={"nodes": 2, "env": {"A": "${B}"}},
        time=1.5,
    )
    made.write()
    return made


def test_submissions_are_read_back(tmp_path: Path) -> None:
    written = [submission(tmp_path, number) for number in (1, 2, 10)]
    (tmp_path / "submissions" / "003").mkdir()  # of one that is being made
    for number, content in {4: "{", 5: '{"number": 5}', 6: '{"run_dir": 1}'}.items():
        (tmp_path / f"submissions/{number:03d}").mkdir()
        (tmp_path / f"submissions/{number:03d}/submission.json").write_text(content)
    assert runs.submissions(tmp_path) == written
    assert runs.cluster_of(written[0]) == ClusterConfig(nodes=2, env={"A": "${B}"})


def test_the_last_outcome(tmp_path: Path) -> None:
    assert runs.last_outcome(tmp_path) is None
    path = tmp_path / "ends.jsonl"
    path.write_text('{"outcome": "stopped"}\n{"outcome": "finished"}\n{"outcome": "div')
    assert runs.last_outcome(tmp_path) == "finished"


def test_tail_shows_what_is_new_once(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = follow.Tail(path, out=out)
    tail.show_new()  # not there yet
    with path.open("ab") as file:
        for part, shown in [(b"one\n", "one\n"), (b"tw", "one\ntw"), (b"o\n", "one\ntwo\n")]:
            file.write(part)
            file.flush()
            tail.show_new()
            tail.show_new()
            assert out.getvalue() == shown


def test_tail_does_not_break_characters(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = follow.Tail(path, out=out)
    letters = "\u00e4\u20ac\n".encode()
    for i in range(1, len(letters) + 1):
        path.write_bytes(letters[:i])
        tail.show_new()
    assert out.getvalue() == "\u00e4\u20ac\n"
    path.write_bytes(letters + b"\xff\n")
    tail.show_new()
    assert out.getvalue().endswith("\ufffd\n")


def test_tail_begins_anew_with_a_file_that_became_shorter(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = follow.Tail(path, out=out)
    path.write_text("a long line\n")
    tail.show_new()
    path.write_text("new\n")
    tail.show_new()
    assert out.getvalue() == "a long line\nnew\n"


@pytest.mark.parametrize(("lines", "shown"), [(0, ""), (1, "c"), (2, "b\nc"), (9, "a\nb\nc")])
def test_the_last_lines(tmp_path: Path, lines: int, shown: str) -> None:
    path, out = tmp_path / "log", io.StringIO()
    path.write_text("a\nb\nc")
    tail = follow.Tail(path, out=out)
    tail.skip_to_last(lines)
    tail.show_new()
    assert out.getvalue() == shown


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert logs.main([str(run_dir)]) == 2
    assert f"error: run ({run_dir}): no such folder" in capsys.readouterr().err
    older, newer = submission(run_dir, 1), submission(run_dir, 2, "8")
    assert logs.main([str(run_dir)]) == 2
    assert "node 0 has printed nothing yet" in capsys.readouterr().err
    older.slurm_folder.mkdir()
    older.log().write_text("old\n")
    assert logs.main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"==> {older.log()} <==\nold\n"
    newer.slurm_folder.mkdir()
    newer.log().write_text("first\nlast\n")
    newer.log(3).write_text("third node\n")
    assert newer.log(3).name == "8_3_log.out"
    assert logs.main([str(run_dir), "-n", "1"]) == 0
    assert capsys.readouterr().out.endswith("<==\nlast\n")
    assert logs.main([str(run_dir), "--node", "3"]) == 0
    assert capsys.readouterr().out.endswith("third node\n")
    assert logs.main([str(run_dir), "--node", "4"]) == 2


def test_the_copy_of_the_code_stands_on_its_own(tmp_path: Path) -> None:
    code = tmp_path / "code"
    copy_code(code)
    assert list(code.rglob("*.pyc")) == []
    script = (
        "import launch, resnet_dist, launch.epilogue\n"
        "from launch.cluster import cluster_files\n"
        "from resnet_dist.config.load import shipped_configs\n"
        "from resnet_dist.run.folder import versions\n"
        "files = [*shipped_configs().values(), *cluster_files().values()]\n"
        "print(launch.__file__, resnet_dist.__file__, versions()['git'], *files, sep='\\n')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    mine, trainer, revision, *files = ended.stdout.splitlines()
    assert mine == str(code / "launch/__init__.py")
    assert trainer == str(code / "resnet_dist/__init__.py")
    assert revision == versions()["git"]
    names = {Path(name).relative_to(code / "resnet_dist/configs").as_posix() for name in files}
    assert {"quickstart.yaml", "cluster/gpu8.yaml"} <= names
    assert len(names) == len(shipped_configs()) + len(list(code.glob("**/cluster/*.yaml")))

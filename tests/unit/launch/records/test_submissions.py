"""Submissions of a run, and the runs that a folder stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch import status
from launch.cluster.option_sources import load_cluster
from launch.cluster.options import ClusterConfig
from launch.records.submissions import (
    Submission,
    expand,
    find_runs,
    last_submission,
    next_number,
    submission_folder,
    submissions,
)
from resnet_dist.errors import UserError
from resnet_dist.system.json_files import write_json
from tests.unit.launch.reports.made_up_run import MadeUp


def written_submission(run_dir: Path, number: int = 1, job_id: str | None = "7") -> Submission:
    folder = submission_folder(run_dir, number)
    folder.mkdir(parents=True, exist_ok=True)
    made = Submission(
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


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\): no such folder; give a run folder"):
        expand(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run"):
        expand(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such folder"):
        expand(tmp_path / "file")


def test_what_a_folder_stands_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert expand(tmp_path / "run") == [tmp_path / "run"]
    (tmp_path / "new" / "submissions").mkdir(parents=True)
    assert expand(tmp_path / "new") == [tmp_path / "new"]
    write_json(tmp_path / "new" / "sweep.json", {"runs": ["a=1", "a=2"]})
    assert expand(tmp_path / "new") == [tmp_path / "new" / name for name in ("a=1", "a=2")]


def test_numbers_of_submissions(tmp_path: Path) -> None:
    assert next_number(tmp_path) == 1
    for name in ("001", "009", "010", "x", ".hidden"):
        (tmp_path / "submissions" / name).mkdir(parents=True)
    assert next_number(tmp_path) == 11
    for name in ("099", "1000"):
        (tmp_path / "submissions" / name).mkdir()
    assert next_number(tmp_path) == 1001


def test_submissions_are_read_back(tmp_path: Path) -> None:
    written = [written_submission(tmp_path, number) for number in (1, 2, 10)]
    (tmp_path / "submissions" / "003").mkdir()  # of one that is being made
    for number, content in {4: "{", 5: '{"number": 5}', 6: '{"run_dir": 1}'}.items():
        (tmp_path / f"submissions/{number:03d}").mkdir()
        (tmp_path / f"submissions/{number:03d}/submission.json").write_text(content)
    assert submissions(tmp_path) == written
    assert last_submission(tmp_path) == written[-1]
    base = written[0].cluster
    assert load_cluster([], {}, base) == ClusterConfig(nodes=2, env={"A": "${B}"})


def test_runs_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/: holds no submitted run"):
        find_runs([])
    assert status.main([]) == 2
    assert capsys.readouterr().err.startswith("error: runs/")
    MadeUp(Path("runs/b"))
    sweep = MadeUp(Path("runs/a")).run_dir
    MadeUp(sweep / "seed=1")
    MadeUp(sweep / "seed=2")
    write_json(sweep / "sweep.json", {"runs": ["seed=1", "seed=2"]})
    (tmp_path / "runs" / "other").mkdir()
    found = [str(path) for path in find_runs([])]
    assert found == ["runs/a/seed=1", "runs/a/seed=2", "runs/b"]
    assert [str(path) for path in find_runs(["runs/b"])] == ["runs/b"]
    with pytest.raises(UserError, match="no such folder"):
        find_runs(["runs/c"])


def test_a_run_folder_is_where_it_is_found(tmp_path: Path) -> None:
    written_submission(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    (found,) = submissions(tmp_path / "moved")
    assert found.run_dir == tmp_path / "moved"
    assert found.code == tmp_path / "moved/submissions/001/code"
    assert found.log() == tmp_path / "moved/submissions/001/slurm/7_0_log.out"
    assert found.own_job == "7"


def test_a_copy_does_not_take_the_job_of_its_original_for_its_own(tmp_path: Path) -> None:
    written_submission(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    jobs = [submissions(tmp_path / name)[0].own_job for name in ("run", "copy", "link")]
    assert jobs == ["7", None, "7"]

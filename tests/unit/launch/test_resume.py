"""`launch.resume`: the last submission again, except for what is given."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from launch.cluster.options import ClusterConfig
from launch.records.submissions import Submission, submission_folder
from launch.resume import main
from launch.submission.request import absolute
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import load_config


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was submitted once, with two nodes and resume=never."""
    run_dir = tmp_path / "run"
    folder = submission_folder(run_dir, 1)
    folder.mkdir(parents=True)
    resolved = load_config([], [f"run.dir={run_dir}", "run.resume=never", "log.every_steps=7"])
    (folder / "config.yaml").write_text(describe(absolute(resolved)) + "\n")
    Submission(
        run_dir=run_dir,
        number=1,
        job_id="7",
        code=folder / "code",
        module="my.module",
        slurm_folder=folder / "slurm",
        cluster=dataclasses.asdict(ClusterConfig(nodes=2, partition="gpu", time="3h")),
        time=time.time(),
    ).write()
    return run_dir


def test_what_is_not_given_is_as_before(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", str(run_dir), "--time=90m", "log.every_steps=9"]) == 0
    script = capsys.readouterr().out
    for flag in ("--nodes=2", "--partition=gpu", "--time=90"):
        assert f"#SBATCH {flag}\n" in script
    assert f"#SBATCH --chdir={run_dir}/submissions/001/code\n" in script, "the code of then"
    assert "--submission 2 " in script
    assert main(["--dry-run", str(run_dir), "--new-code"]) == 0
    assert f"#SBATCH --chdir={run_dir}/submissions/002/code\n" in capsys.readouterr().out


def test_other_mathematics_is_rejected_setting_by_setting(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["optim.lr=0.123", "train.epochs=77"]
    assert main(["--dry-run", str(run_dir), *settings]) == 2
    first, second, remedy = capsys.readouterr().err.splitlines()
    assert first.startswith("error: train.epochs (")
    assert second.startswith("error: optim.lr (")
    assert second.endswith("-> 0.123): changes the mathematics")
    assert remedy == "error: run.allow_config_change=true resumes all the same"
    assert main(["--dry-run", str(run_dir), *settings, "run.allow_config_change=true"]) == 0


def test_a_resumed_run_stays_in_its_folder(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", str(run_dir), "run.dir=/elsewhere"]) == 2
    assert "run.dir: a resumed run stays in its folder" in capsys.readouterr().err


def test_a_run_that_was_never_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert main(["--dry-run", str(tmp_path)]) == 2
    assert "was not submitted by launch.submit" in capsys.readouterr().err

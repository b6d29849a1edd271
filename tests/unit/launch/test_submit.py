"""From a command line to the script of a job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.submit import main


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["--dry-run", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def folders(script: str) -> list[str]:
    """The run folders of an array, from its script."""
    found = re.search(r"run_dirs=\((.*)\)", script)
    return re.findall(r"'([^']*)'|(\S+)", found[1]) if found else []  # type: ignore[return-value]


def test_a_sweep_is_one_array_with_a_folder_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--sweep", "seed=1,2", "--sweep", "optim.lr=0.1,0.2", "--array-parallelism=3"]
    code, script, _ = dry_run(capsys, f"run.dir={tmp_path / 'sweep'}", *sweep)
    assert code == 0
    assert "#SBATCH --array=0-3%3\n" in script
    names = ["".join(pair).removeprefix(f"{tmp_path}/sweep/") for pair in folders(script)]
    assert names == [
        f"seed={seed},optim.lr={lr}" for seed in (1, 2) for lr in (0.1, 0.2)
    ]  # both axes count, also when --sweep is given twice
    assert not (tmp_path / "sweep").exists()


def test_slashes_in_values_do_not_make_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"run.dir={tmp_path / 'sweep'}"
    _, script, _ = dry_run(capsys, run, "--sweep", "data.root=/data/a,/data/b")
    names = ["".join(pair).removeprefix(f"{tmp_path}/sweep/") for pair in folders(script)]
    assert names == ["data.root=_data_a", "data.root=_data_b"]


def test_two_runs_never_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"run.dir={tmp_path / 'sweep'}"
    code, _, error = dry_run(capsys, run, "--sweep", "data.root=/data/a,/data_a")
    assert code == 2
    assert "--sweep: data.root=/data/a and data.root=/data_a would have the same folder" in error


def test_a_sweep_of_one_is_a_job_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, script, _ = dry_run(capsys, f"run.dir={tmp_path}/s", "--sweep", "seed=3")
    assert code == 0
    assert "--array" not in script
    assert f"launch.node.requeue {tmp_path}/s/seed=3 --submission 1" in script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep", "run.dir=a,b"], "error: --sweep (run.name, run.dir): each run has a folder"),
        (["--sweep", "run.name=a,b"], "error: --sweep (run.name, run.dir): each run has a folder"),
        (["--sweep", "optim.l=1,2"], "error: optim.l (from command line): unknown key"),
        (["--nodes=0"], "error: --nodes (0): must be at least 1"),
        (["--cluster=none"], "error: --cluster (none): no such file"),
        (["--nodes=3", "dist.world_size=2"], "error: dist.world_size (2): but 3 nodes of 1 ranks"),
        (["run.evaluate_only=true"], "error: run.evaluate_only (True): a job trains"),
        (["train.global_batch_size=0", "epochs=1"], "error: epochs (from command line): unknown"),
    ],
)
def test_bad_input_is_rejected_at_once(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, error = dry_run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in error
    assert all(line.startswith("error: ") for line in error.splitlines())


def test_paths_are_absolute_in_what_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, script, _ = dry_run(capsys, "run.name=mine")
    assert f"#SBATCH --chdir={tmp_path}/runs/mine/submissions/001/code\n" in script
    (tmp_path / "runs/mine/submissions/004").mkdir(parents=True)
    _, script, _ = dry_run(capsys, "run.name=mine")
    assert "mine/submissions/005/code" in script
    assert "--submission 5 " in script


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([f"run.dir={tmp_path / 'run'}"]) == 2
    assert "Slurm (sbatch, srun, squeue, scontrol, sinfo): not found" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_follows_a_sweep_is_not_swallowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, script, _ = dry_run(
        capsys, "--sweep", "seed=3,4", f"run.dir={tmp_path}/s", "train.epochs=2"
    )
    assert code == 0
    assert "--array=0-1" in script
    assert f"run_dirs=({tmp_path}/s/seed=3 {tmp_path}/s/seed=4)" in script


def test_a_folder_with_a_percent_sign_is_escaped_and_patterns_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, script, _ = dry_run(capsys, f"run.dir={tmp_path}/100%d")
    assert code == 0
    assert f"--output={tmp_path}/100%%d/submissions/001/slurm/%j_0_log.out" in script
    code, _, said = dry_run(capsys, f"run.dir={tmp_path}/a%jb")
    assert code == 2
    assert "holds %j, which Slurm's file names use" in said


@pytest.mark.parametrize("words", [["--comment", "a\nrm x"], ["run.name=a\nb"]])
def test_control_characters_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = dry_run(capsys, *words)
    assert code == 2
    assert "must hold no control characters" in said


def test_a_dry_run_names_data_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = dry_run(capsys, f"run.dir={tmp_path}/s", f"data.root={tmp_path}/none")
    assert code == 0
    assert f"note: data.root ({tmp_path}/none) is not on this machine" in said

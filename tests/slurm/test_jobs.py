"""Submitting to a real Slurm: what users do, and what they get wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import losses, torchrun
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.settings import GPUS_PER_NODE
from tests.slurm.submitted import (
    NUM_STEPS,
    SETTINGS,
    Submitted,
    assert_bit_for_bit,
    assert_same_samples_and_losses,
    job_id_of,
    submit,
)

pytestmark = pytest.mark.timeout(420)

Reference = Callable[[int], Path]


def test_two_nodes_of_two_ranks_equal_a_local_run_of_four(
    slurm: Cluster, tmp_path: Path, run_root: Path, reference: Reference
) -> None:
    run = submit(slurm, tmp_path / "run", run_root, "--nodes=2", "--ranks-per-node=2")
    run.wait_for_end()
    assert_same_samples_and_losses(run, reference(4))
    status = run.status()
    assert status["state"] == "FINISHED"
    assert status["progress"]["step"] == status["progress"]["num_steps"] == NUM_STEPS
    assert run.hosts() == [["node1", "node2"]]
    # What ran is the copy that was made at submission.
    start = json.loads((run.run_dir / "starts.jsonl").read_text().splitlines()[-1])
    assert start["versions"]["git"] != "unknown"
    again = slurm.launch("submit", f"run.dir={run.run_dir}", check=False)
    assert again.returncode == 2
    assert "holds a finished run" in again.stderr
    assert "FINISHED" in slurm.launch("status", run.run_dir).stdout
    assert f"finished at step {NUM_STEPS}" in slurm.launch("logs", run.run_dir).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("least", "slow_s"), [(1, 2.0), (2, 4.5)])
def test_a_time_limit_is_no_end(
    slurm: Cluster,
    tmp_path: Path,
    run_root: Path,
    reference: Reference,
    least: int,
    slow_s: float,
) -> None:
    """Reached once or more often: requeued, resumed at the step of the checkpoint, and equal bit
    for bit to an uninterrupted run."""
    limit = ["--time=1m", "--signal-delay-s=10"]
    run = submit(slurm, tmp_path / "run", run_root, "--nodes=2", *limit, slow_s=slow_s)
    run.wait_for_end(timeout_s=400)
    *stopped, last = run.status()["attempts"]
    assert len(stopped) >= least, run.report()
    assert {row["outcome"] for row in stopped} == {"stopped"}
    assert {row["reason"] for row in stopped} == {"the time limit was near (SIGUSR2)"}
    assert last["outcome"] == "finished"
    starts = [json.loads(line) for line in (run.run_dir / "starts.jsonl").read_text().splitlines()]
    saved = [0, *(row["step"] for row in stopped)]
    assert [start["step"] for start in starts] == saved[-len(starts) :], "a step was done twice"
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow
def test_scancel_saves_and_resume_continues_elsewhere(
    slurm: Cluster, tmp_path: Path, run_root: Path, reference: Reference
) -> None:
    """From two nodes to one, and then to three."""
    run = submit(slurm, tmp_path / "run", run_root, "--nodes=2", slow_s=0.5)
    run.wait_for_step(3)
    refused = slurm.launch("submit", f"run.dir={run.run_dir}", check=False)
    assert refused.returncode == 2
    assert f"its run is RUNNING as job {run.job_id}" in refused.stderr
    slurm.run("scancel", run.job_id)
    run.wait_for_end("CANCELLED")
    first = run.status()
    assert first["attempts"][-1]["outcome"] == "stopped"
    assert first["attempts"][-1]["cause"] == "ended_by_slurm"
    assert "(SIGTERM)" in first["attempts"][-1]["reason"]
    stopped_at = first["attempts"][-1]["step"]
    assert stopped_at == run.step(), "the last step has a checkpoint"

    run.job_id = job_id_of(slurm.launch("resume", run.run_dir, "--nodes=1").stdout)
    run.wait_for_step(stopped_at + 3)
    slurm.launch("cancel", run.run_dir)
    second = run.status()
    assert second["state"] == "CANCELLED"
    assert second["attempts"][-1]["step"] == run.step() > stopped_at

    run.job_id = job_id_of(slurm.launch("resume", run.run_dir, "--nodes=3").stdout)
    run.wait_for_end()
    assert [len(hosts) for hosts in run.hosts()] == [2, 1, 3]
    assert_same_samples_and_losses(run, reference(2))


@pytest.mark.slow
def test_a_sweep(slurm: Cluster, tmp_path: Path, run_root: Path) -> None:
    """Four runs, two at a time; one of them cannot work, and the others do not mind."""
    root = tmp_path / "sweep"
    said = slurm.launch(
        "submit",
        "--nodes=1",
        "--array-parallelism=2",
        "--max-failures=1",
        "--wait",
        *SETTINGS,
        "train.epochs=1",
        "schedule.warmup_epochs=0.5",
        f"data.root={run_root}",
        f"run.dir={root}",
        "--sweep",
        "seed=1,2",
        # Refused when the data is read: by the job, and not already at its submission.
        "model.num_classes=3,2",
        check=False,
    )
    assert said.returncode == 1, said.stderr
    assert "submitted 4 runs as jobs" in said.stdout
    runs = {name: root / name for name in json.loads((root / "sweep.json").read_text())["runs"]}
    assert len(runs) == 4
    rows = json.loads(slurm.launch("status", root, "--json").stdout)
    states = {Path(row["run_dir"]).name: row["state"] for row in rows}
    assert states == {
        "seed=1,model.num_classes=3": "FINISHED",
        "seed=1,model.num_classes=2": "REFUSED",
        "seed=2,model.num_classes=3": "FINISHED",
        "seed=2,model.num_classes=2": "REFUSED",
    }
    spans = [_span(path) for path in runs.values()]
    for moment, _ in spans:
        assert sum(begin <= moment < end for begin, end in spans) <= 2
    table = slurm.launch("status", root).stdout
    assert "model.num_classes (2): the data has 3 classes" in table
    assert all(name in table for name in runs)


def _span(run_dir: Path) -> tuple[float, float]:
    """When a run's only attempt began and ended."""
    notes = (run_dir / "attempts" / "001.000" / "node0.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in notes]
    return min(times), max(times)


def test_what_cannot_work_is_rejected_at_submission(
    slurm: Cluster, tmp_path: Path, run_root: Path
) -> None:
    run = [f"run.dir={tmp_path / 'run'}", f"data.root={run_root}"]
    locked = tmp_path / "locked"
    locked.write_text("a file")
    cases = {
        ("--partition=hihg", *run): "--partition (hihg): there is none of that name; did you mean "
        "high?",
        ("--partition=down", *run): "--partition (down): is not up, so the job would not start",
        (f"--gpus-per-node={GPUS_PER_NODE + 1}", *run): "--gpus-per-node (3): no node of",
        ("--nodes=9", *run): "--nodes (9): any partition has no more than 4",
        (f"run.dir={locked / 'run'}",): "cannot be written to",
        ("train.epohcs=3", *run): "did you mean train.epochs?",
        ("train.global_batch_size=2", "--nodes=3", *run): "train.global_batch_size (2)",
        ("--time=soon", *run): "--time (soon): is not a duration",
        ("--config=resnet51", *run): "did you mean resnet50?",
        ("--constraint=h100", *run): "Slurm would refuse the job",
    }
    for arguments, words in cases.items():
        said = slurm.launch("submit", *arguments, check=False)
        assert said.returncode == 2, (arguments, said.stdout)
        assert words in said.stderr
        assert "Traceback" not in said.stderr
    said = slurm.launch("submit", *run, check=False, PATH="/usr/bin/nowhere")
    assert said.returncode == 2
    assert "Slurm (sbatch, srun, squeue, scontrol, sinfo): not found on PATH" in said.stderr
    assert slurm.run("squeue", "-h").stdout == ""


def test_the_script_can_be_looked_at(slurm: Cluster, tmp_path: Path, run_root: Path) -> None:
    """--dry-run touches nothing, and needs no Slurm."""
    options = ["--nodes=2", "--gpus-per-node=2", "--partition=high", "--time=90m", "--qos=fast"]
    options += ["--cpus-per-gpu=1", "--mem-gb-per-gpu=2", "--setup=module load cuda", "--env=A=b c"]
    arguments = [*options, f"run.dir={tmp_path / 'run'}", f"data.root={run_root}"]
    text = slurm.launch("submit", "--dry-run", *arguments, PATH="/usr/bin/nowhere").stdout
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --partition=high",
        "#SBATCH --time=90",
        "#SBATCH --qos=fast",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=4096MB",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "module load cuda",
        "export A='b c'",
    ):
        assert line in text.splitlines(), text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_job_without_slurm(tmp_path: Path, run_root: Path, slurm: Cluster) -> None:
    """--local: the same object, its notes and its table."""
    run_dir = tmp_path / "run"
    said = slurm.launch(
        "submit",
        "--local",
        "--ranks-per-node=2",
        *SETTINGS,
        "train.max_steps=3",
        f"data.root={run_root}",
        f"run.dir={run_dir}",
        PATH="/usr/bin:/bin",
    )
    assert "finished at step 3" in said.stdout + said.stderr
    status = slurm.launch("status", run_dir).stdout
    assert "FINISHED" in status
    assert "3 of 3" in status


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_data_set_on_two_nodes(slurm: Cluster, tmp_path: Path) -> None:
    """The quickstart to its end, against torchrun alone with as many ranks."""
    settings = ["train.precision=float32", "performance.num_threads=1"]
    words = ["--nodes=2", "--ranks-per-node=2", *settings, f"run.dir={tmp_path / 'run'}"]
    said = slurm.launch("submit", *words).stdout
    run = Submitted(slurm, tmp_path / "run", job_id_of(said))
    run.wait_for_end(timeout_s=800)
    local = [*settings, f"run.dir={tmp_path / 'local'}", "log.progress=lines"]
    slurm.run(*torchrun(4, local), timeout_s=800, GLOO_SOCKET_IFNAME="lo")
    assert losses(run.run_dir) == pytest.approx(losses(tmp_path / "local"), rel=1e-4)


@pytest.mark.slow
def test_the_script_of_the_manual(
    slurm: Cluster, tmp_path: Path, run_root: Path, reference: Reference
) -> None:
    """Without the launcher: requeued in the middle, stopped, and sent again with the launcher."""
    run_dir = tmp_path / "run"
    (run_dir / "trace").mkdir(parents=True)
    manual = (ROOT / "docs" / "slurm.md").read_text()
    script = manual.partition("```bash\n")[2].partition("```")[0]
    settings = " ".join(f"'{word}'" for word in [*SETTINGS, f"data.root={run_root}"])
    for old, new in {
        "#SBATCH --gpus-per-node=8\n": "",
        "/shared/runs/a": str(run_dir),
        "--nproc-per-node=8": "--nproc-per-node=1",
        "exec torchrun": f"exec {Path(sys.executable).parent / 'torchrun'}",
        "resnet_dist.train": "tests.faults.traced",
        "--config resnet50 data.root=/data/imagenet": settings,
        "dist.timeout_s=120": "dist.timeout_s=20",
    }.items():
        assert old in script, old
        script = script.replace(old, new)
    path = tmp_path / "job.sh"
    path.write_text(script)
    job_id = slurm.run(
        "sbatch",
        "--parsable",
        path,
        RESNET_DIST_TEST_TRACE=str(run_dir / "trace"),
        RESNET_DIST_FAILPOINT="step.begin@1-=sleep:0.7",
    ).stdout.strip()
    run = Submitted(slurm, run_dir, job_id)
    run.wait_for_step(3)
    slurm.run("scontrol", "requeue", job_id)
    run.wait_for_restart(1)
    at = run.step()
    run.wait_for_step(at + 2)
    slurm.run("scancel", job_id)
    run.wait_for_end("CANCELLED")
    ends = [json.loads(line) for line in (run_dir / "ends.jsonl").read_text().splitlines()]
    assert [end["outcome"] for end in ends] == ["stopped", "stopped"]
    run = submit(slurm, run_dir, run_root, "--nodes=2")
    run.wait_for_end()
    assert_bit_for_bit(run, reference(2))

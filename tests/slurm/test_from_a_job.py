"""Submitting from the shell of another job, and where the caller's environment is kept out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import NUM_STEPS, submit

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


def test_the_callers_job_and_the_callers_wish_to_export_nothing(
    slurm: Cluster, tmp_path: Path, run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_TRES_PER_TASK": "cpu:1",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "3",
        "SBATCH_EXPORT": "NONE",
    }.items():
        monkeypatch.setenv(name, value)
    run = submit(
        slurm,
        tmp_path / "100% done",
        run_root,
        "--cpus-per-gpu=2",
        "--mem-gb-per-gpu=0.5",
        "--setup=export MY_SETUP=seen",
    )
    run.wait_for_end()
    status = run.status()
    assert status["state"] == "FINISHED"
    assert status["progress"]["step"] == NUM_STEPS
    logs = slurm.launch("logs", run.run_dir).stdout
    assert f"finished at step {NUM_STEPS}" in logs

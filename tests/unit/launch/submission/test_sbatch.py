"""The batch script: for containers and arrays, with odd characters, and what bash makes of it."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.options import ClusterConfig
from launch.node.job import TrainJob
from launch.submission import sbatch
from tests.unit.launch.mock_slurm import MockSlurm

ODD = 'it\'s a "run" $HOME `x` & 100; (1)'
RUN = Path("/runs/mine")
CODE = RUN / "submissions/001/code"


def script(cluster: ClusterConfig, *, runs: tuple[Path, ...] = (RUN,), root: Path = RUN) -> str:
    """As `launch.submission.request` asks for it."""
    code, mounts = root / "submissions/001/code", [f"{root}:{root}"]
    values = sbatch.parameters(
        cluster,
        name="mine",
        code=code,
        folder=root / "submissions/001/slurm",
        is_array=len(runs) > 1,
        requeue=sbatch.requeue_command(cluster, runs, 1),
        mounts=mounts,
    )
    python = sbatch.python_command(cluster, mounts)
    return sbatch.script_text(root / "submissions/001/slurm", values, python, count=len(runs))


def flags(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def srun(text: str) -> list[str]:
    """The words of the one command."""
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    return shlex.split(line)


def assert_bash_accepts(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True)


def test_resources() -> None:
    cluster = ClusterConfig(
        nodes=2, gpus_per_node=8, cpus_per_gpu=12, mem_gb_per_gpu=62.5, time="2d", exclusive=True,
        partition="a,b", account="acc", qos="high", constraint="ib&h100", exclude="n[1-3]",
        nodelist="n4", reservation="res", comment="it is mine", signal_delay_s=300,
        sbatch_args={"mail-type": "FAIL", "open-mode": "truncate"}, srun_args=["--mpi=none"],
    )  # fmt: skip
    text = script(cluster)
    for flag in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=96",
                 "mem=512000MB", "time=2880", "exclusive", "partition=a,b", "account=acc",
                 "qos=high", "reservation=res", "signal=USR2@300", "requeue", "nodelist=n4",
                 "mail-type=FAIL", "open-mode=truncate", f"chdir={CODE}"):  # fmt: skip
        assert f"--{flag}" in flags(text)
    for flag in ("constraint='ib&h100'", "exclude='n[1-3]'", "comment='it is mine'"):
        assert f"--{flag}" in flags(text)
    words = srun(text)
    for word in ("--kill-on-bad-exit=1", "--cpus-per-task=96", "--mpi=none"):
        assert word in words
    assert words.index("--mpi=none") > words.index("--kill-on-bad-exit=1")
    assert_bash_accepts(text)


def test_what_is_not_asked_for_is_not_there() -> None:
    text = script(ClusterConfig())
    names = {flag.partition("=")[0].removeprefix("--") for flag in flags(text)}
    assert names == {"chdir", "job-name", "nodes", "ntasks-per-node", "open-mode", "output",
                     "requeue", "signal", "time", "wckey"}  # fmt: skip
    assert srun(text)[srun(text).index("-u") - 1] == sys.executable
    assert "container" not in text
    assert "apptainer" not in text
    assert_bash_accepts(text)


def test_pyxis() -> None:
    cluster = ClusterConfig(
        container="/images/a b.sqsh", container_mounts=["/data:/data:ro"], python="python3"
    )
    text = script(cluster)
    words = srun(text)
    assert "--container-image=/images/a b.sqsh" in words
    assert f"--container-workdir={CODE}" in words
    assert f"--container-mounts={RUN}:{RUN},/data:/data:ro" in words
    assert words[words.index("-u") - 1] == "python3"
    assert "exec python3 -m launch.node.requeue" in text  # on the host, where Slurm's commands are
    assert_bash_accepts(text)


@pytest.mark.parametrize("gpus", [0, 2])
def test_apptainer(gpus: int) -> None:
    cluster = ClusterConfig(
        gpus_per_node=gpus,
        container="/images/a b.sif",
        container_runtime="apptainer",
        container_mounts=["/data:/data:ro"],
        python="/opt/my python",
    )
    text = script(cluster)
    words = srun(text)
    start = words.index("apptainer")
    expected = ["apptainer", "exec", *(["--nv"] if gpus else []), "--bind", f"{RUN}:{RUN}"]
    expected += ["--bind", "/data:/data:ro", "/images/a b.sif", "/opt/my python", "-u"]
    assert words[start : start + len(expected)] == expected
    assert not any(word.startswith("--container") for word in words)
    assert "exec python3 -m launch.node.requeue" in text
    assert_bash_accepts(text)


def test_an_array() -> None:
    text = script(ClusterConfig(array_parallelism=2), runs=(RUN / "a=1", RUN / "a=2", RUN / "a=3"))
    assert "--array=0-2%2" in flags(text)
    assert "%A_%a_%t_log.out" in " ".join(srun(text))
    assert_bash_accepts(text)


def run_end(text: str, tmp_path: Path, **environment: str) -> list[str]:
    """Run a script's end, after srun, with a MOCK of Python that prints its arguments."""
    mock = tmp_path / "mock python"
    mock.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    mock.chmod(0o755)
    teardown = text.partition("# teardown\n")[2]
    teardown = teardown.replace(shlex.quote(sys.executable), shlex.quote(str(mock)))
    command = f"(exit 7)\n{teardown}"
    ended = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


def test_requeue_gets_the_run_and_the_code_of_srun(tmp_path: Path) -> None:
    folder = Path("/runs") / ODD
    words = run_end(script(ClusterConfig(max_failures=3), runs=(folder,), root=folder), tmp_path)
    assert words == ["-m", "launch.node.requeue", str(folder), "--submission", "1", "--code", "7",
                     "--max-failures", "3", "--exclude-bad"]  # fmt: skip
    words = run_end(script(ClusterConfig(exclude_bad_nodes=False)), tmp_path)
    assert "--exclude-bad" not in words


def test_each_element_of_an_array_gets_its_own_run(tmp_path: Path) -> None:
    folders = tuple(RUN / name for name in ("a=1", ODD.replace("/", "_"), "b=[1,2]"))
    text = script(ClusterConfig(), runs=folders)
    for i, folder in enumerate(folders):
        words = run_end(text, tmp_path, SLURM_ARRAY_TASK_ID=str(i))
        assert words[2] == str(folder)


def test_odd_characters_reach_the_job_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    cluster = ClusterConfig(
        env={"ODD": ODD, "EMPTY": ""}, setup=["export DERIVED=${ODD}x"], comment="a 'b' \"c\""
    )
    text = script(cluster, runs=(folder,), root=folder)
    assert_bash_accepts(text)
    setup = text.partition("# setup\n")[2].partition("# command")[0]
    command = f'{setup}\nprintf "%s\\n" "$ODD" "$EMPTY" "$DERIVED" "$PYTHONPATH"'
    shown = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "/old"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    code = folder / "submissions/001/code"
    assert shown == [ODD, "", f"{ODD}x", f"{code}:/old"]
    words = srun(text)
    assert words[-1] == str(folder / "submissions/001/slurm")
    assert words[words.index("--output") + 1].startswith(str(folder))
    assert f"--chdir={shlex.quote(str(code))}" in flags(text)


def test_the_batch_script_survives_signals() -> None:
    setup = script(ClusterConfig()).partition("# setup\n")[2].partition("# command")[0]
    for name in ("TERM", "USR1", "USR2"):
        command = f"{setup}\nkill -{name} $$\necho alive"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert ended.stdout == "alive\n"


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_submitted_is_the_script_that_can_be_looked_at(
    tmp_path: Path, mock: MockSlurm, count: int
) -> None:
    """submitit writes the same text as its private function, with the chosen Python in arrays."""
    mock.answers("srun")
    mock.answers("sbatch", "Submitted batch job 9")
    cluster = ClusterConfig(nodes=2, cpus_per_gpu=3, mem_gb_per_gpu=2.5, python="/opt/my python")
    folder = tmp_path / "slurm"
    values = sbatch.parameters(
        cluster, name="mine", code=CODE, folder=folder, requeue="true", is_array=count > 1
    )
    python = sbatch.python_command(cluster, [])
    job = TrainJob(str(tmp_path), 1, "config.yaml", str(CODE), cluster)
    job_ids = sbatch.submit(folder, values, python, [job] * count)
    assert job_ids == (["9"] if count == 1 else [f"9_{i}" for i in range(count)])
    expected = sbatch.script_text(folder, values, python, count=count)
    assert (folder / "9_submission.sh").read_text() == expected
    assert "'/opt/my python' -u -m submitit.core._submit" in expected
    assert len(list(folder.glob("9*_submitted.pkl"))) == count


def test_what_submitit_carries_can_be_pickled() -> None:
    job = TrainJob(str(RUN), 1, "config.yaml", str(CODE), ClusterConfig(nodes=2))
    copy: Any = pickle.loads(pickle.dumps(job))
    assert copy == job
    assert copy.cluster.world_size == 2

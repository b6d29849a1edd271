"""What Slurm's commands say, read from a MOCK of them: shell scripts that answer as written here.

The real ones are asked in tests/slurm.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.cluster import slurm
from launch.cluster.slurm import JobState, SlurmError
from resnet_dist.errors import UserError
from tests.unit.launch.mock_slurm import MockSlurm


def test_squeue_is_believed_while_it_knows_the_job(mock: MockSlurm) -> None:
    """After a lost node the accounting says NODE_FAIL, though the job will run again."""
    mock.answers("sacct", "NODE_FAIL|node[1-2]")
    mock.answers("scontrol", "JobId=7 JobState=NODE_FAIL Reason=None NodeList=node[1-2]")
    for line, expected in {
        "PENDING|BeginTime||1:00:00": JobState("7", "PENDING", "BeginTime", "", "1:00:00"),
        "RUNNING|None|node[1-2]|59:10": JobState("7", "RUNNING", "", "node[1-2]", "59:10"),
        "REQUEUED|None||": JobState("7", "REQUEUED"),
    }.items():
        mock.answers("squeue", line)
        state = slurm.states(["7"])["7"]
        assert state == expected
        assert state.is_active


def test_then_scontrol_and_then_the_accounting(mock: MockSlurm) -> None:
    assert slurm.states(["7"]) == {"7": JobState("7", "UNKNOWN")}
    assert not slurm.states(["7"])["7"].is_active
    mock.answers("sacct", "NODE_FAIL|node1\n|\nCANCELLED by 1000|node2\n")
    assert slurm.states(["7"])["7"] == JobState("7", "CANCELLED", nodes="node2")
    assert [each.state for each in slurm.history("7")] == ["NODE_FAIL", "CANCELLED"]
    mock.answers(
        "scontrol",
        "JobId=7 JobName=x JobState=FAILED Reason=NonZeroExitCode ReqNodeList=(null) "
        "ExcNodeList=node9 NodeList=node[3-4] BatchHost=node3",
    )
    expected = JobState("7", "FAILED", "NonZeroExitCode", "node[3-4]")
    assert slurm.states(["7"])["7"] == expected
    assert not expected.is_active
    mock.answers("squeue", "")  # an empty answer is none
    assert slurm.states(["7"])["7"] == expected


def test_a_job_that_never_had_nodes(mock: MockSlurm) -> None:
    mock.answers("scontrol", "JobId=7 JobState=CANCELLED Reason=None NodeList=(null)")
    assert slurm.states(["7"])["7"] == JobState("7", "CANCELLED")


def test_elements_of_an_array_are_asked_for_one_by_one(mock: MockSlurm) -> None:
    mock.script(
        "squeue",
        'case "$*" in *" 9_0 "*) echo "RUNNING|None|node1|1:00";;'
        ' *" 9_1 "*) echo "PENDING|JobArrayTaskLimit||1:00";;'
        " *) echo Invalid job id specified >&2; exit 1;; esac",
    )
    found = slurm.states(["9_0", "9_1", "9_2"])
    assert [state.state for state in found.values()] == ["RUNNING", "PENDING", "UNKNOWN"]
    assert found["9_1"].reason == "JobArrayTaskLimit"


def test_a_controller_that_is_down_is_no_end_of_the_job(mock: MockSlurm) -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    mock.answers("squeue", err=words, code=1)
    with pytest.raises(SlurmError, match="squeue: slurm_load_jobs error: Unable to contact"):
        slurm.states(["7"])


def test_no_answer(mock: MockSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.2)
    for command in ("squeue", "sbatch"):
        mock.script(command, "exec sleep 30")
    with pytest.raises(SlurmError, match=r"squeue: no answer in 0\.2 s; is slurmctld up"):
        slurm.states(["7"])
    with pytest.raises(SlurmError, match="sbatch: no answer"):
        slurm.test_submission(mock.folder / "job.sh")


def test_refusals_have_slurms_words(mock: MockSlurm) -> None:
    mock.answers("scontrol", err="slurm_requeue error:\n  Job is pending execution", code=1)
    with pytest.raises(SlurmError, match=r"^scontrol: slurm_requeue error: Job is pending exec"):
        slurm.requeue("7")
    mock.answers("scancel", code=3)
    with pytest.raises(SlurmError, match=r"^scancel: exit code 3$"):
        slurm.cancel("7")
    mock.answers("sbatch", err="sbatch: error: Invalid qos specification", code=1)
    with pytest.raises(SlurmError, match="would refuse the job: sbatch: error: Invalid qos"):
        slurm.test_submission(mock.folder / "job.sh")
    mock.answers("sbatch", err="sbatch: Job 8 to start at 2026-01-01 on node1")
    assert "Job 8 to start" in slurm.test_submission(mock.folder / "job.sh")


def test_what_it_tells_slurm(mock: MockSlurm) -> None:
    for command in ("scontrol", "scancel"):
        mock.answers(command)
    slurm.requeue("7_1")
    slurm.exclude("7_1", ["node1", "node2"])
    slurm.send_signal("7_1", "USR1")
    slurm.cancel("7_1")
    assert mock.called() == [
        "scontrol requeue 7_1",
        "scontrol update JobId=7_1 ExcNodeList=node1,node2",
        "scancel --signal=USR1 7_1",
        "scancel 7_1",
    ]


def test_excluded_nodes(mock: MockSlurm) -> None:
    mock.answers("scontrol", "JobId=7 ReqNodeList=(null) ExcNodeList=(null) NodeList=node1")
    assert slurm.excluded("7") == []
    mock.script(
        "scontrol",
        'case "$*" in *hostnames*node\\[1-2\\]) echo node1; echo node2;;'
        ' *) echo "JobId=7 ExcNodeList=node[1-2] NodeList=node3";; esac',
    )
    assert slurm.excluded("7") == ["node1", "node2"]


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Slurm \(sbatch, srun, .*not found on PATH.*--local"):
        slurm.require_slurm()
    with pytest.raises(SlurmError, match="squeue: not found; is this a machine of the cluster"):
        slurm.states(["7"])


def test_the_job_in_whose_shell_we_are_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_CONF", "SRUN_DEBUG", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    slurm.leave_caller_job()
    left = {name for name in os.environ if name.startswith(("SLURM", "SRUN", "SBATCH", "CUDA_V"))}
    assert left == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    slurm.leave_caller_job()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"  # in no job it is the user's


def test_tools_without_a_cluster_are_named_in_one_sentence(mock: MockSlurm) -> None:
    mock.answers("sinfo", err="slurm_load_partitions: Unable to contact slurm controller", code=1)
    with pytest.raises(slurm.SlurmError, match="but no cluster answers: submit from a login node"):
        slurm.ask("sinfo")


@pytest.mark.parametrize(
    ("job", "mode", "expected"),
    [
        ("JobState=COMPLETING PreemptTime=2026-11-26T21:23:17", "CANCEL", True),
        ("JobState=COMPLETING PreemptTime=2026-11-26T21:23:17", "REQUEUE", False),
        ("JobState=COMPLETING PreemptTime=None", "CANCEL", False),  # by scancel
        (
            "JobState=RUNNING PreemptTime=2026-11-26T21:23:17",
            "CANCEL",
            False,
        ),  # has a time of grace
    ],
)
def test_a_preempted_job_is_told_from_a_cancelled_one(
    mock: MockSlurm, job: str, mode: str, expected: bool
) -> None:
    answer = f"echo 'JobId=7 Partition=low {job}'"
    mock.script(
        "scontrol", f'case "$*" in *job*) {answer};; *) echo "A=1 PreemptMode={mode}";; esac'
    )
    assert slurm.is_cancelled_by_preemption("7") is expected

"""What Slurm's commands say, read from a MOCK of them: shell scripts that answer as written here.

The real ones are asked in tests/slurm.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import slurm
from launch.slurm import JobState, Partition, SlurmError
from resnet_dist.errors import UserError
from tests.unit.mock_slurm import MockSlurm, mock_slurm


@pytest.fixture
def mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MockSlurm:
    return mock_slurm(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("gpu:8", 8),
        ("gpu:a100:8", 8),
        ("gpu:a100:8(S:0-1),nvme:1", 8),
        ("gpu:8(S:0)", 8),
        ("gpu:a100:4,gpu:v100:2", 6),
        ("gpu:a100_3g.20gb:4(S:0),gpu:a100:2(S:1)", 6),
        ("nvme:gpu:3,gpumem:80", 0),
        ("mps:100,shard:8", 0),
        ("(null)", 0),
        ("", 0),
    ],
)
def test_gpus_of(gres: str, number: int) -> None:
    assert slurm.gpus_of(gres) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("infinite", float("inf")),
        ("UNLIMITED", float("inf")),
        ("n/a", float("inf")),
        ("1-00:00:00", 1440),
        ("2-12:30:30", 3600 + 30.5),
        ("4:00:00", 240),
        ("30:00", 30),
        ("0:30", 0.5),
        ("15", 15),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
    ],
)
def test_limit_min(text: str, number: float) -> None:
    assert slurm.limit_min(text) == number


SINFO = """\
gpu|up|4|gpu:a100:8(S:0-1)|2-00:00:00
gpu|up|2|gpu:a100:4|2-00:00:00
cpu|up|2K|(null)|infinite
debug|down|1|gpu:1|30:00"""


def test_partitions_are_summed_over_kinds_of_nodes(mock: MockSlurm) -> None:
    mock.answers("sinfo", SINFO)
    assert slurm.partitions() == {
        "gpu": Partition(6, 8, 2880, True),
        "cpu": Partition(2048, 0, float("inf"), True),  # sinfo abbreviates multiples of 1024
        "debug": Partition(1, 1, 30, False),
    }


@pytest.mark.parametrize(
    ("names", "nodes", "gpus", "time_min", "words"),
    [
        ("gpus", 1, 1, 10, r"--partition \(gpus\): there is none.*did you mean gpu\?.*cpu, debug"),
        ("gpu,x", 1, 1, 10, r"--partition \(x\): there is none"),
        ("gpu", 1, 9, 10, r"--gpus-per-node \(9\): no node of partition gpu has more than 8"),
        ("cpu", 1, 1, 10, r"no node of partition cpu has more than 0"),
        (None, 1, 9, 10, r"no node of any partition has more than 8"),
        ("gpu", 7, 1, 10, r"--nodes \(7\): partition gpu has no more than 6"),
        ("debug", 1, 1, 31, r"--time \(31 minutes\): partition debug allows 30 minutes at most"),
    ],
)
def test_what_no_partition_can_run(
    mock: MockSlurm, names: str | None, nodes: int, gpus: int, time_min: int, words: str
) -> None:
    mock.answers("sinfo", SINFO)
    with pytest.raises(UserError, match=words):
        slurm.check_request(names, nodes=nodes, gpus_per_node=gpus, time_min=time_min)


def test_what_a_partition_can_run(mock: MockSlurm) -> None:
    mock.answers("sinfo", SINFO)
    for names in ("gpu", "debug,gpu", None):
        slurm.check_request(names, nodes=6, gpus_per_node=8, time_min=2880)


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

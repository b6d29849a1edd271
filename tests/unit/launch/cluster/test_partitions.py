"""Partitions as a MOCK of sinfo writes them, and which jobs they can run."""

from __future__ import annotations

import pytest

from launch.cluster.partitions import (
    Partition,
    check_request,
    gpus_of,
    limit_min,
    partitions,
)
from resnet_dist.errors import UserError
from tests.unit.launch.mock_slurm import MockSlurm


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
    assert gpus_of(gres) == number


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
    assert limit_min(text) == number


SINFO = """\
gpu|up|4|gpu:a100:8(S:0-1)|2-00:00:00
gpu|up|2|gpu:a100:4|2-00:00:00
cpu|up|2K|(null)|infinite
debug|up|1|gpu:1|30:00
old|down|64|gpu:16|infinite"""


def test_partitions_are_summed_over_kinds_of_nodes(mock: MockSlurm) -> None:
    mock.answers("sinfo", SINFO)
    assert partitions() == {
        "gpu": Partition(6, 8, 2880, True),
        "cpu": Partition(2048, 0, float("inf"), True),  # sinfo abbreviates multiples of 1024
        "debug": Partition(1, 1, 30, True),
        "old": Partition(64, 16, float("inf"), False),
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
        ("old", 1, 1, 10, r"--partition \(old\): is not up, .* these are: cpu, debug, gpu$"),
        ("gpu,old", 1, 9, 10, r"no node of partition gpu,old has more than 8"),
        ("debug", 1, 1, 31, r"--time \(31 minutes\): partition debug allows 30 minutes at most"),
    ],
)
def test_what_no_partition_can_run(
    mock: MockSlurm, names: str | None, nodes: int, gpus: int, time_min: int, words: str
) -> None:
    mock.answers("sinfo", SINFO)
    with pytest.raises(UserError, match=words):
        check_request(names, nodes=nodes, gpus_per_node=gpus, time_min=time_min)


def test_what_a_partition_can_run(mock: MockSlurm) -> None:
    mock.answers("sinfo", SINFO)
    for names in ("gpu", "debug,gpu", None):
        assert check_request(names, nodes=6, gpus_per_node=8, time_min=2880) == []


def test_a_partition_that_is_down_is_marked_where_another_can_run_the_job(mock: MockSlurm) -> None:
    mock.answers("sinfo", SINFO)
    assert check_request("old,gpu", nodes=6, gpus_per_node=8, time_min=2880) == [
        "partition old is not up; another of old,gpu must run the job"
    ]


def test_a_cluster_that_is_down(mock: MockSlurm) -> None:
    mock.answers("sinfo", "gpu|inact|4|gpu:8|infinite")
    with pytest.raises(UserError, match=r"--partition \(any\): is not up, .* these are: none"):
        check_request(None, nodes=1, gpus_per_node=1, time_min=1)

"""Is a node fit, and what the first node makes of what all nodes found."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.options import ClusterConfig
from launch.node.preflight import Findings, conclude, examine, pass_together, wants_gpus
from launch.preflight import main
from launch.records.attempt import Attempt, AttemptName
from launch.records.journal import PreflightReport, Problem, read_problems
from resnet_dist.config import Config, DataConfig, DistConfig, RunConfig


def report(
    node: int, *, problems: tuple[str, ...] = (), gpus: tuple[str, ...] = ()
) -> PreflightReport:
    return PreflightReport(node=node, host=f"n{node}", time=0.0, problems=problems, gpus=gpus)


def test_all_is_well() -> None:
    reports = [report(0, gpus=("a", "b")), report(1, gpus=("c", "d"))]
    assert conclude(reports, hosts=("n0", "n1"), timeout_s=1) == []


def test_problems_have_the_host_of_their_node() -> None:
    reports = [report(1, problems=("no GPU", "no room")), report(0)]
    assert conclude(reports, hosts=("n0", "n1"), timeout_s=1) == [
        Problem("n1", "no GPU"),
        Problem("n1", "no room"),
    ]


def test_a_gpu_in_two_places() -> None:
    reports = [report(0, gpus=("a", "b")), report(1, gpus=("b", "c"))]
    assert conclude(reports, hosts=("n0", "n1"), timeout_s=1) == [
        Problem("n1", "its GPU b is also that of n0")
    ]


def test_silent_nodes_are_named() -> None:
    assert conclude([report(1)], hosts=("n0", "n1", "n2"), timeout_s=300) == [
        Problem("n0", "node 0 of the job reported nothing within 300 s"),
        Problem("n2", "node 2 of the job reported nothing within 300 s"),
    ]


@pytest.mark.parametrize(
    ("gpus", "device", "expected"), [(0, "auto", False), (2, "auto", True), (2, "cpu", False)]
)
def test_wants_gpus(gpus: int, device: Any, expected: bool) -> None:
    config = Config(dist=DistConfig(device=device))
    assert wants_gpus(ClusterConfig(gpus_per_node=gpus), config) == expected


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run on a data set that is there."""
    for split in ("train", "val"):
        (tmp_path / "data" / split / "class").mkdir(parents=True)
    data = DataConfig(root=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    return Config(data=data, run=RunConfig(dir=str(tmp_path / "run")))


ANY = ClusterConfig(min_free_disk_gib=0, min_free_shm_gib=0)


def test_a_fit_node(config: Config) -> None:
    assert examine(ANY, config) == Findings([], None, [])


def test_missing_and_empty_data(config: Config, tmp_path: Path) -> None:
    (tmp_path / "data/val/class").rmdir()
    (tmp_path / "data/train").rename(tmp_path / "data/training")
    assert examine(ANY, config).problems == [
        f"{tmp_path}/data/train: cannot be listed (No such file or directory)",
        f"{tmp_path}/data/val: is empty",
    ]


def test_made_up_data_is_not_looked_for(tmp_path: Path) -> None:
    run = RunConfig(dir=str(tmp_path / "run"))
    for data in (DataConfig(loader="synthetic", root="/nowhere"), DataConfig(root=None)):
        assert examine(ANY, Config(data=data, run=run)).problems == []


def test_no_room_names_each_folder(config: Config, tmp_path: Path) -> None:
    cluster = ClusterConfig(min_free_disk_gib=1e9, min_free_shm_gib=2e9)
    problems = examine(cluster, config).problems
    names = [str(tmp_path / "run"), str(tmp_path / "cache"), "/dev/shm"]
    assert [problem.partition(": ")[0] for problem in problems] == names
    assert "GiB are free, 1e+09 GiB are needed" in problems[0]
    assert "2e+09 GiB are needed" in problems[2]
    assert not (tmp_path / "run").exists()


def with_gpus(number: int) -> ClusterConfig:
    return ClusterConfig(gpus_per_node=number, min_free_disk_gib=0, min_free_shm_gib=0)


def test_gpus_of_a_node(config: Config, mock_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")  # the node's numbers
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert examine(with_gpus(2), config) == Findings([], "0,1", ["GPU-a", "GPU-b"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert examine(with_gpus(1), config) == Findings([], "0", ["GPU-a"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert "7 core(s) for 1 rank(s)" in examine(with_gpus(1), config).notes[0]
    (problem,) = examine(with_gpus(4), config).problems
    assert problem.startswith("4 GPUs were asked for, but 2 are there")
    mock_smi.write_text("#!/bin/sh\necho Unable to determine the device handle; exit 255\n")
    (problem,) = examine(with_gpus(2), config).problems
    assert problem == "nvidia-smi failed: Unable to determine the device handle"


def attempt(tmp_path: Path, node: int) -> Attempt:
    made = Attempt(tmp_path, AttemptName(1, 0), node)
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def take_part(
    tmp_path: Path, node: int, *problems: str, timeout_s: float = 20, interrupted: bool = False
) -> tuple[Problem, ...]:
    return pass_together(
        attempt(tmp_path, node),
        Findings(list(problems)),
        hosts=("n0", "n1"),
        timeout_s=timeout_s,
        is_interrupted=lambda: interrupted,
    )


def test_all_nodes_get_the_same_conclusion(tmp_path: Path) -> None:
    heard: list[tuple[Problem, ...]] = []
    other = threading.Thread(target=lambda: heard.append(take_part(tmp_path, 1, "no room")))
    other.start()
    mine = take_part(tmp_path, 0)
    other.join(20)
    assert mine == (Problem("n1", "no room"),)  # by its name in Slurm
    assert heard == [mine]
    assert read_problems(tmp_path, AttemptName(1, 0)) == mine


def test_the_first_node_does_not_wait_without_end(tmp_path: Path) -> None:
    assert take_part(tmp_path, 0, timeout_s=0) == (
        Problem("n1", "node 1 of the job reported nothing within 0 s"),
    )


def test_without_a_conclusion_a_node_says_where_it_looked(tmp_path: Path) -> None:
    (problem,) = take_part(tmp_path, 1, timeout_s=0)
    assert problem.host == "n1"
    assert "saw no conclusion of the first node" in problem.what


@pytest.mark.parametrize("node", [0, 1])
def test_a_signal_ends_the_wait(tmp_path: Path, node: int) -> None:
    assert take_part(tmp_path, node, "no room", interrupted=True) == ()
    assert not (tmp_path / "attempts/001.000/preflight.json").exists()


def test_on_this_machine_alone(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [f"run.dir={tmp_path / 'run'}", f"data.root={config.data.root}"]
    place.append(f"data.cache_dir={tmp_path}")
    room = ["--min-free-disk-gib=0", "--min-free-shm-gib=0"]
    assert main([*room, *place]) == 0
    assert capsys.readouterr().out.strip().endswith(": fit")
    assert main([*room, *place, "data.val_split=none"]) == 1
    assert "/data/none: cannot be listed" in capsys.readouterr().out
    assert main([*room, "data.roots=x"]) == 2
    assert "error: data.roots" in capsys.readouterr().err


def test_too_few_cores_are_noted_and_do_not_stop_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen cores for eight GPUs were 3.2 times slower than 128 in one report."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    data = DataConfig(loader="synthetic", num_workers=4)
    found = examine(replace(ANY, ranks_per_node=8), Config(data=data))
    assert found.problems == []
    (note,) = found.notes
    assert note.startswith("16 core(s) for 8 rank(s): data.num_workers (4)")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    crowded = examine(replace(ANY, ranks_per_node=8), Config(data=replace(data, num_workers=None)))
    assert "cpus_per_gpu" in crowded.notes[0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert examine(replace(ANY, ranks_per_node=8), Config(data=data)).notes == []

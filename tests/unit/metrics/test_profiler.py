"""A trace of chosen steps: which, what is written, and what it costs the others: nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resnet_dist.config import ProfileConfig
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.metrics.profiler import Profiler, family_of, where_time_went
from resnet_dist.world import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def take_step() -> None:
    image, weight = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
    torch.nn.functional.conv2d(image, weight).relu()


def run(profiler: Profiler, steps: range) -> None:
    for step in steps:
        profiler.begin_step(step)
        take_step()
    profiler.close()


def test_the_chosen_steps_are_traced_and_no_others(tmp_path: Path) -> None:
    said: list[str] = []
    run(Profiler(ProfileConfig(steps=(2, 4)), tmp_path, WORLD, said.append), range(8))
    assert len(said) == 1
    (trace,) = (tmp_path / "profile").glob("*.pt.trace.json.gz")
    assert trace.name == "rank_0.steps_2_4.pt.trace.json.gz"
    with gzip.open(trace) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::conv2d") == 2
    text = (tmp_path / "profile" / "rank_0.steps_2_4.txt").read_text()
    assert text.strip() in said[0]
    assert "convolution" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_ends_in_the_middle_keeps_its_trace(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = Profiler(ProfileConfig(steps=(2, 40)), tmp_path, WORLD, said.append)
    run(profiler, range(5))
    profiler.close()
    assert len(said) == 1


def test_a_run_that_resumes_behind_the_steps_traces_nothing(tmp_path: Path) -> None:
    run(Profiler(ProfileConfig(steps=(2, 4)), tmp_path, WORLD, pytest.fail), range(9, 12))
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_and_runs_without_the_setting_trace_nothing(tmp_path: Path) -> None:
    other = World(1, 2, 1, 2, torch.device("cpu"))
    for config, world in ((ProfileConfig(steps=(0, 2)), other), (ProfileConfig(), WORLD)):
        run(Profiler(config, tmp_path, world, pytest.fail), range(4))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    said: list[str] = []
    run(Profiler(ProfileConfig(steps=(0, 1)), tmp_path, WORLD, said.append), range(2))
    assert said[0].startswith("warning: the profile cannot be written")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("ncclDevKernel_AllReduce_Sum_f32", "communication"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("aten::_foreach_add_", "optimizer"),
        ("aten::threshold_backward", "ReLU and additions"),
        ("Memcpy HtoD", "copies and casts"),
        ("aten::sort", "other"),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_shares_add_up() -> None:
    events = [
        SimpleNamespace(key=name, self_cpu_time_total=time, self_device_time_total=0.0)
        for name, time in (("aten::conv2d", 3000.0), ("aten::relu", 1000.0), ("idle", 0.0))
    ]
    lines = where_time_went(events, on_gpu=False)
    assert lines[0] == "where the traced steps went (4.0 ms in operators on the CPU):"
    assert lines[1].split() == ["convolution", "75.0%", "3.0", "ms"]


def test_steps_must_rise() -> None:
    with pytest.raises(UserError, match=r"profile\.steps .* must rise"):
        load_config([], ["profile.steps=[5, 5]"])

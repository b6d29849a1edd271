"""How a step is taken follows from the settings, once, when it is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.config.performance import PLAIN, Speed
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.performance import build
from resnet_dist.performance.cuda_graph import (
    WARM_UP_STEPS,
    WARM_UP_STEPS_DDP,
    GraphedGradients,
    GraphedStep,
)
from resnet_dist.performance.wrap import first_synchronised
from resnet_dist.step import EagerStep, Step
from resnet_dist.world import World
from tests.unit.performance.recorded_graph import RecordedGraphs

CAPTURED = "performance.cuda_graph=true"
ONE_CYCLE = ("schedule.name=one_cycle", "schedule.warmup_epochs=0")


class Builder:
    """Builds steps of a model that is not wrapped, and notes the warm-up's arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warm_up: dict[str, Any] = {}
        self.model = nn.Linear(2, 2)
        side_stream = torch.no_grad  # any context
        graphs = type("Graphs", (RecordedGraphs,), {"side_stream": lambda _: side_stream()})
        monkeypatch.setattr(build, "CudaGraphs", lambda _: graphs())
        monkeypatch.setattr(build, "check_device", lambda *_: None)
        monkeypatch.setattr(build, "wrap_model", lambda model, **_: model)
        monkeypatch.setattr(build, "warm_up_buckets", lambda _, **given: self.warm_up.update(given))

    def build(self, config: Config, *, rank: int = 0, world_size: int = 1) -> Step:
        world = World(rank, world_size, rank, world_size, torch.device("cpu"))
        state: Any = SimpleNamespace(
            model=self.model,
            optimizer=torch.optim.SGD(self.model.parameters()),
            scaler=None,
            guard=None,
            meter=SimpleNamespace(update=None),
        )
        return build.sync_build_step(
            config, state, choose_batch_split(config.train, world.size), world=world
        )


def config_of(*overrides: str) -> Config:
    return load_config([], list(overrides)).config


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(monkeypatch)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ((), EagerStep),
        (ONE_CYCLE, EagerStep),
        ((CAPTURED,), GraphedStep),
        ((CAPTURED, *ONE_CYCLE, "schedule.cycle_momentum=false"), GraphedStep),
        ((CAPTURED, *ONE_CYCLE), GraphedGradients),
    ],
)
def test_the_kind_of_step(overrides: tuple[str, ...], kind: type, builder: Builder) -> None:
    assert type(builder.build(config_of(*overrides))) is kind


@pytest.mark.parametrize(("world_size", "expected"), [(1, WARM_UP_STEPS), (3, WARM_UP_STEPS_DDP)])
def test_ddp_takes_more_eager_steps(world_size: int, expected: int, builder: Builder) -> None:
    step = builder.build(config_of(CAPTURED), world_size=world_size)
    assert isinstance(step, GraphedStep)
    assert step._warm_up_steps == expected


def test_the_compiler_sees_the_real_micro_batch_first(builder: Builder) -> None:
    settings = ["train.global_batch_size=26", "train.max_micro_batch_size=5"]
    builder.build(config_of(*settings), rank=1, world_size=3)
    assert builder.warm_up["batch_size"] == 2
    builder.build(config_of(*settings, "performance.compile=true"), rank=1, world_size=3)
    assert builder.warm_up["batch_size"] in (4, 5)


def test_a_replay_calls_no_hook_so_nothing_marks_its_first_collective() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert first_synchronised(model, speed=PLAIN) is not None
    assert first_synchronised(model, speed=Speed(cuda_graph=True)) is None


def test_a_cpu_cannot_capture() -> None:
    build.check_device(config_of(), torch.device("cpu"))
    build.check_device(config_of(CAPTURED), torch.device("cuda"))
    with pytest.raises(UserError, match="needs a GPU"):
        build.check_device(config_of(CAPTURED), torch.device("cpu"))


def _chosen(config: Config, device: str, size: int = 1) -> tuple[str, list[str]]:
    world = World(0, size, 0, size, torch.device(device))
    chosen, lines = build.choose_preset(config, world)
    return chosen.performance.preset, lines


def test_auto_is_decided_once_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_wrong_with_kernels", lambda *_: "")
    assert _chosen(config_of("model.width=64"), "cpu") == ("plain", [])
    assert _chosen(config_of("model.width=64"), "cuda") == ("graphed", [])
    preset, (line,) = _chosen(config_of("model.width=64"), "cuda", 8)
    assert preset == "plain"
    assert "several GPUs" in line
    for other in (
        "model.width=24",
        "train.channels_last=false",
        "performance.compile=true",
        "performance.preset=plain",
    ):
        assert _chosen(config_of(other), "cuda") == ("plain", [])
    assert _chosen(config_of("performance.preset=fused"), "cuda") == ("fused", [])


def test_muon_is_not_captured_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_wrong_with_kernels", lambda *_: "")
    preset, (line,) = _chosen(config_of("model.width=64", "optim.name=muon"), "cuda")
    assert preset == "plain"
    assert build.MUON_NOTE in line
    asked = config_of("model.width=64", "optim.name=muon", "performance.preset=graphed")
    assert _chosen(asked, "cuda") == ("graphed", [build.MUON_NOTE])


def test_auto_is_plain_where_the_kernels_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_wrong_with_kernels", lambda *_: "apply is off by 1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    preset, (line,) = _chosen(config_of("model.width=64"), "cuda")
    assert preset == "plain"
    assert "apply is off by 1" in line
    with pytest.raises(UserError, match="apply is off by 1"):
        _chosen(config_of("performance.preset=fused"), "cuda")

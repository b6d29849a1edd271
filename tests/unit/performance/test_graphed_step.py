"""A captured step does what an eager one does, bit for bit: on CPUs, with a mock of CUDA graphs.

The mock (`tests.unit.performance.recorded_graph`) replays tensor operations alone, as a GPU does,
so whatever of a step is Python is seen to be missing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_dist.config import LossConfig, ModelConfig, OptimConfig
from resnet_dist.data.batch import Batch, MixedLabels
from resnet_dist.faults.loss_history import LossHistory
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.performance.cuda_graph import WARM_UP_STEPS, GraphedGradients, GraphedStep
from resnet_dist.performance.faulty_step import FaultyStep
from resnet_dist.performance.fused_network import FusedNetwork
from resnet_dist.state import TrainState
from resnet_dist.step import EagerStep, Step, StepSettings
from resnet_dist.system import failpoints
from tests.unit.performance.recorded_graph import RecordedGraphs

CPU = torch.device("cpu")
NUM_CLASSES = 5
NUM_STEPS = 10
BAD_STEP = 6


def make_batch(seed: int, *, n: int = 6, size: int = 8, mixed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, size, size, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (2, n), generator=generator)
    second = MixedLabels(labels[1], torch.rand(n, generator=generator)) if mixed else None
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(seed, images, labels[0], np.arange(n), second)


class Run:
    """A small run, whose steps are eager or go through the mock."""

    def __init__(
        self,
        optim: OptimConfig | None = None,
        *,
        graphed: bool,
        precision: torch.dtype | None = None,
        accumulation_steps: int = 1,
        moves_momentum: bool = False,
        fused: bool = False,
        **settings: Any,
    ) -> None:
        model = build_model(ModelConfig(name="resnet9", width=8), num_classes=NUM_CLASSES, seed=0)
        model = model.to(memory_format=torch.channels_last)
        self.state = TrainState(
            model=model,
            optimizer=build_optimizer(optim or OptimConfig(), model),
            scaler=torch.amp.GradScaler(
                "cpu", enabled=precision is torch.float16, init_scale=256.0, growth_interval=3
            ),
            average=None,
            meter=TrainMeter(CPU),
            guard=NonFiniteGuard(model),
            losses=LossHistory(),
        )
        values: dict[str, Any] = {
            "accumulation_steps": accumulation_steps,
            "gradient_scale": 1 / (6 * accumulation_steps),
            "autocast_dtype": precision,
            "loss": LossConfig(),
            "clip_grad_norm": None,
            "clip_grad_value": None,
        }
        eager = (FaultyStep if failpoints.is_armed() else EagerStep)(
            network=FusedNetwork(model) if fused else model,
            optimizer=self.state.optimizer,
            scaler=self.state.scaler,
            settings=StepSettings(**(values | settings)),
            on_logits=self.state.meter.update,
            guard=self.state.guard,
        )
        self.graphs = RecordedGraphs()
        self.step: Step = eager
        self.moves_momentum = moves_momentum
        if graphed:
            kind = GraphedGradients if moves_momentum else GraphedStep
            self.step = kind(eager, self.graphs, warm_up_steps=WARM_UP_STEPS)

    def take(self, batches: Iterator[Batch]) -> tuple[float, dict[str, float]]:
        """One step; its gradient's norm and the meter's values."""
        lr = float(np.float32(0.05 / (1 + self.state.step)))  # a captured rate is float32
        momentum = 0.95 - 0.01 * self.state.step if self.moves_momentum else None
        apply_schedule(self.state.optimizer, lr=lr, momentum=momentum)
        grad_norm = self.step(batches, step=self.state.step).item()
        self.state.step += 1
        return grad_norm, self.state.meter.read_and_reset(lambda tensor: tensor)

    def saved(self) -> dict[str, Any]:
        return copy.deepcopy(self.state.state_dict())


def load(run: Run, saved: dict[str, Any]) -> None:
    run.state.load_state_dict(copy.deepcopy(saved), is_main=True)


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, NaNs included."""
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def batches_of(step: int, num_micro_batches: int, **arguments: Any) -> Iterator[Batch]:
    for micro_batch in range(num_micro_batches):
        batch = make_batch(10 * step + micro_batch, **arguments)
        if step == BAD_STEP:
            batch.images[2, 1, 0, 0] = float("inf")
        yield batch


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nesterov": {"optim": OptimConfig(nesterov=True, weight_decay=0.01)},
    "adam": {"optim": OptimConfig(name="adam")},
    "adamw": {"optim": OptimConfig(name="adamw", weight_decay=0.01)},
    "lars": {"optim": OptimConfig(name="lars", weight_decay=0.01)},
    "lamb": {"optim": OptimConfig(name="lamb", weight_decay=0.01), "precision": torch.float16},
    "cycled sgd": {"moves_momentum": True, "clip_grad_norm": 0.5},
    "cycled lars": {"moves_momentum": True, "optim": OptimConfig(name="lars")},
    "cycled lamb": {"moves_momentum": True, "optim": OptimConfig(name="lamb")},
    "cycled adam": {"moves_momentum": True, "optim": OptimConfig(name="adam")},
    "cycled float16": {
        "moves_momentum": True,
        "precision": torch.float16,
        "accumulation_steps": 2,
    },
    "clipped": {"clip_grad_norm": 0.5},
    "clipped values": {"clip_grad_value": 0.01},
    "accumulated": {"accumulation_steps": 2},
    "smoothed": {"loss": LossConfig(label_smoothing=0.1)},
    "binary": {"loss": LossConfig(name="binary_cross_entropy", bce_target_threshold=0.2)},
    "bfloat16": {"precision": torch.bfloat16},
    "fused": {"fused": True},
    "fused bfloat16": {"fused": True, "precision": torch.bfloat16},
    "float16": {"precision": torch.float16},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_replayed_steps_have_the_bits_of_eager_ones(name: str) -> None:
    """Batches and learning rates change from step to step, and one step is skipped."""
    eager, graphed = (Run(**VARIANTS[name], graphed=graphed) for graphed in (False, True))
    num_micro_batches = VARIANTS[name].get("accumulation_steps", 1)
    mixed = name in ("binary", "smoothed")
    for step in range(NUM_STEPS):
        one = eager.take(batches_of(step, num_micro_batches, mixed=mixed))
        other = graphed.take(batches_of(step, num_micro_batches, mixed=mixed))
        assert_equal(one, other)
        assert_equal(eager.saved(), graphed.saved())
    assert (graphed.graphs.num_captured, graphed.graphs.num_replayed) == (
        1,
        NUM_STEPS - WARM_UP_STEPS,
    )
    counts = graphed.state.guard.read()
    assert (counts.total, counts.first_step, counts.own_loss_step) == (1, BAD_STEP, BAD_STEP)


def test_the_mock_executes_nothing_when_it_captures() -> None:
    """Else a captured step would be taken twice, and on a GPU not at all."""
    run = Run(graphed=True)
    before = run.saved()
    assert isinstance(run.step, GraphedStep)
    eager = run.step._eager
    replay = run.graphs.capture(lambda: eager(iter([make_batch(0)]), step=0))
    assert_equal(run.saved(), before)
    replay()
    assert not torch.equal(
        run.saved()["model"]["conv1.0.weight"], before["model"]["conv1.0.weight"]
    )


def test_the_mock_misses_what_python_does_in_a_step() -> None:
    """A step that the guard is told as a number would be the captured one for ever."""
    run = Run(graphed=True)
    assert isinstance(run.step, GraphedStep)
    eager, batch = run.step._eager, make_batch(0)
    numbers = iter(range(100))
    run.take(iter([batch]))
    replay = run.graphs.capture(lambda: eager(iter([batch]), step=next(numbers)))
    batch.images[0, 0, 0, 0] = float("nan")
    for _ in range(3):
        replay()
    assert run.state.guard.read().first_step == 0 != next(numbers)


@pytest.mark.parametrize("moves_momentum", [False, True])
def test_each_form_of_batch_has_a_graph_of_its_own(moves_momentum: bool) -> None:
    """Sizes that grow and come back, and micro-batches of uneven sizes."""
    eager, graphed = (
        Run(graphed=graphed, accumulation_steps=2, moves_momentum=moves_momentum)
        for graphed in (False, True)
    )
    sizes = [8, 8, 8, 8, 16, 16, 16, 16, 16, 8, 16]
    for step, size in enumerate(sizes):
        pairs = [
            run.take(
                iter([make_batch(2 * step, size=size), make_batch(2 * step + 1, n=4, size=size)])
            )
            for run in (eager, graphed)
        ]
        assert_equal(*pairs)
        assert_equal(eager.saved(), graphed.saved())
    assert (graphed.graphs.num_captured, graphed.graphs.num_replayed) == (2, 5)


def test_a_loader_may_use_a_batchs_memory_again() -> None:
    def reused(step: int) -> Iterator[Batch]:
        own = make_batch(0)
        for micro_batch in range(2):
            own.images.copy_(make_batch(10 * step + micro_batch).images)
            own.labels.copy_(make_batch(10 * step + micro_batch).labels)
            yield own

    eager, graphed = (Run(graphed=graphed, accumulation_steps=2) for graphed in (False, True))
    for step in range(6):
        assert_equal(eager.take(batches_of(step, 2)), graphed.take(reused(step)))


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_runs_go_on_from_each_others_checkpoints(optim: Any) -> None:
    """Eager from captured, captured from eager, and a captured one that goes back."""
    runs = [Run(OptimConfig(name=optim), graphed=graphed) for graphed in (False, True, False, True)]
    eager, graphed, other_eager, other_graphed = runs
    for step in range(5):
        for run in (eager, graphed):
            run.take(iter([make_batch(step)]))
    saved = [run.saved() for run in (eager, graphed)]
    for state in saved:
        for group in state["optimizer"]["param_groups"]:
            assert type(group["lr"]) is float
            assert not group.get("capturable", False)
    load(other_eager, saved[1])
    load(other_graphed, saved[0])
    for step in range(5, 10):
        results = [run.take(iter([make_batch(step)])) for run in runs]
        assert results == [results[0]] * 4
    for run in runs[1:]:
        assert_equal(eager.saved(), run.saved())
    load(graphed, saved[1])  # after its capture
    for step in range(5, 10):
        graphed.take(iter([make_batch(step)]))
    assert_equal(eager.saved(), graphed.saved())
    assert graphed.graphs.num_captured == 2


def test_what_was_closed_begins_anew() -> None:
    eager, graphed = Run(graphed=False), Run(graphed=True)
    for step in range(10):
        assert eager.take(iter([make_batch(step)])) == graphed.take(iter([make_batch(step)]))
        if step == 4:
            graphed.step.close()
    assert_equal(eager.saved(), graphed.saved())
    assert (graphed.graphs.num_captured, graphed.graphs.num_replayed) == (2, 4)


@pytest.mark.parametrize("moves_momentum", [False, True])
def test_failpoints_of_a_captured_step(
    moves_momentum: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In eager, captured and replayed steps alike: each is passed once a step, and spoils it."""
    spec = "step.loss@4=damage;step.loss@6=damage;step.parameters@8=damage;step.begin@9=sleep:0"
    log = tmp_path / "log"
    monkeypatch.setenv(failpoints.VARIABLE, spec)
    monkeypatch.setenv(failpoints.LOG_VARIABLE, str(log))
    eager, graphed = (Run(graphed=g, moves_momentum=moves_momentum) for g in (False, True))
    for run in (eager, graphed):
        failpoints._passed.clear()
        log.unlink(missing_ok=True)
        for step in range(9):
            run.take(iter([make_batch(step)]))
        assert [line.split(" ", 1)[0] for line in log.read_text().splitlines()] == spec.split(";")
    assert_equal(eager.saved(), graphed.saved())
    assert graphed.state.guard.read().total == 2

"""A captured step does what an eager one does, bit for bit: on CPUs, with a mock of CUDA graphs.

The mock (`tests.unit.recorded_graph`) replays tensor operations alone, as a GPU does, so whatever
of a step is Python is seen to be missing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnet_dist import failpoints
from resnet_dist.config import ModelConfig, OptimConfig
from resnet_dist.data.jobs import Batch, MixedLabels
from resnet_dist.faults.loss_record import LossRecord
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.graphed_step import WARM_UP_STEPS, GraphedStep
from resnet_dist.loss import LossSettings
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.state import TrainState
from resnet_dist.step import EagerStep, Step, StepSettings
from tests.unit.recorded_graph import RecordedGraphs

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
            losses=LossRecord(),
        )
        values: dict[str, Any] = {
            "accumulation_steps": accumulation_steps,
            "gradient_scale": 1 / (6 * accumulation_steps),
            "autocast_dtype": precision,
            "loss": LossSettings(),
            "clip_grad_norm": None,
            "clip_grad_value": None,
        }
        eager = EagerStep(
            network=model,
            optimizer=self.state.optimizer,
            scaler=self.state.scaler,
            settings=StepSettings(**(values | settings)),
            on_logits=self.state.meter.update,
            guard=self.state.guard,
        )
        self.graphs = RecordedGraphs()
        self.step: Step = eager
        if graphed:
            self.step = GraphedStep(eager, self.graphs, warm_up_steps=WARM_UP_STEPS)

    def take(self, batches: Iterator[Batch]) -> tuple[float, dict[str, float]]:
        """One step; its gradient's norm and the meter's values."""
        lr = float(np.float32(0.05 / (1 + self.state.step)))  # a captured rate is float32
        apply_schedule(self.state.optimizer, lr=lr, momentum=None)
        grad_norm = self.step(batches, step=self.state.step).item()
        self.state.step += 1
        return grad_norm, self.state.meter.read_and_reset(lambda tensor: tensor)

    def saved(self) -> dict[str, Any]:
        return copy.deepcopy(self.state.state_dict())


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, NaNs included."""
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def batches_of(step: int, micros: int, **arguments: Any) -> Iterator[Batch]:
    for micro in range(micros):
        batch = make_batch(10 * step + micro, **arguments)
        if step == BAD_STEP:
            batch.images[2, 1, 0, 0] = float("inf")
        yield batch


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nesterov": {"optim": OptimConfig(nesterov=True, weight_decay=0.01)},
    "adam": {"optim": OptimConfig(name="adam")},
    "adamw": {"optim": OptimConfig(name="adamw", weight_decay=0.01)},
    "clipped": {"clip_grad_norm": 0.5},
    "clipped values": {"clip_grad_value": 0.01},
    "accumulated": {"accumulation_steps": 2},
    "smoothed": {"loss": LossSettings(label_smoothing=0.1)},
    "binary": {"loss": LossSettings("binary_cross_entropy", target_threshold=0.2)},
    "bfloat16": {"precision": torch.bfloat16},
    "float16": {"precision": torch.float16},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_replayed_steps_have_the_bits_of_eager_ones(name: str) -> None:
    """Batches and learning rates change from step to step, and one step is skipped."""
    eager, graphed = (Run(**VARIANTS[name], graphed=graphed) for graphed in (False, True))
    micros = VARIANTS[name].get("accumulation_steps", 1)
    mixed = name in ("binary", "smoothed")
    for step in range(NUM_STEPS):
        one = eager.take(batches_of(step, micros, mixed=mixed))
        other = graphed.take(batches_of(step, micros, mixed=mixed))
        assert_equal(one, other)
        assert_equal(eager.saved(), graphed.saved())
    assert (graphed.graphs.num_captured, graphed.graphs.num_replayed) == (
        1,
        NUM_STEPS - WARM_UP_STEPS,
    )
    counts = graphed.state.guard.read()
    assert (counts.total, counts.first_step, counts.own_loss_step) == (1, BAD_STEP, BAD_STEP)

"""A step whose loss or gradient is not finite changes nothing but the counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from resnet_dist.config import LossConfig, OptimConfig
from resnet_dist.data.batch import Batch
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.optim.build import build_optimizer
from resnet_dist.step import EagerStep, StepSettings


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


def batches(values: list[float]) -> Iterator[Batch]:
    """One micro-batch a value; the value is written into one pixel."""
    generator = torch.Generator().manual_seed(1)
    for value in values:
        images = torch.randn(6, 3, 2, 2, generator=generator)
        images[2, 1, 0, 0] += value
        labels = torch.randint(0, 5, (6,), generator=generator)
        yield Batch(step=0, images=images, labels=labels, sample_ids=np.arange(6))


class Run:
    """A model that is trained step by step."""

    def __init__(self, optim: OptimConfig, **settings: object) -> None:
        self.model = make_model()
        self.optimizer = build_optimizer(optim, self.model)
        self.guard = NonFiniteGuard(self.model)
        values: dict[str, object] = {
            "accumulation_steps": 1,
            "gradient_scale": 1 / 6,
            "autocast_dtype": None,
            "loss": LossConfig(),
            "clip_grad_norm": None,
            "clip_grad_value": None,
        }
        self.settings = StepSettings(**(values | settings))  # type: ignore[arg-type]
        self.steps = 0

    def step(self, *values: float) -> None:
        step = EagerStep(
            network=self.model,
            optimizer=self.optimizer,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            settings=self.settings,
            on_logits=lambda *_: None,
            guard=self.guard,
        )
        step(batches(list(values)), step=self.steps)
        self.steps += 1

    def everything(self) -> list[torch.Tensor]:
        moments = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return copy.deepcopy([*self.model.state_dict().values(), *moments])


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


OPTIMIZERS = [
    OptimConfig(name="sgd", lr=0.1, nesterov=True),
    OptimConfig(name="adam", lr=0.1),
    OptimConfig(name="adamw", lr=0.1),
]


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
@pytest.mark.parametrize("clip", [{}, {"clip_grad_value": 0.1}, {"clip_grad_norm": 0.1}])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_skipped_step_leaves_everything_as_it_was(
    optim: OptimConfig, clip: dict[str, float], value: float
) -> None:
    run = Run(optim, **clip)
    run.step(0.0)
    before = run.everything()
    run.step(value)
    run.step(value)
    assert_equal(run.everything(), before)
    counts = run.guard.read()
    assert (counts.total, counts.in_a_row, counts.longest, counts.first_step) == (2, 2, 2, 1)
    assert counts.own_loss_step == 1
    run.step(0.0)
    assert all(tensor.isfinite().all() for tensor in run.everything())
    assert not torch.equal(run.everything()[0], before[0])
    counts = run.guard.read()
    assert (counts.total, counts.in_a_row, counts.longest) == (2, 0, 2)
    run.guard.begin_interval()
    assert run.guard.read().longest == 0


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
def test_a_skipped_first_step_leaves_no_rubbish_in_the_moments(optim: OptimConfig) -> None:
    """Fused SGD would allocate its momentum there and never set it."""
    run, reference = Run(optim), Run(optim)
    run.step(float("nan"))
    for _ in range(3):
        run.step(0.0)
        reference.step(0.0)
    assert_equal(run.everything(), reference.everything())


def test_one_bad_micro_batch_skips_the_step() -> None:
    run = Run(OPTIMIZERS[0], accumulation_steps=3)
    before = run.everything()
    run.step(0.0, float("nan"), 0.0)
    assert_equal(run.everything(), before)


def test_the_guard_changes_no_bit_of_a_good_step() -> None:
    run = Run(OPTIMIZERS[0])
    reference = make_model()
    optimizer = build_optimizer(OPTIMIZERS[0], reference)
    for _ in range(3):
        run.step(0.0)
        (batch,) = batches([0.0])
        logits = reference(batch.images)
        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        (loss * (1 / 6)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert_equal([*run.model.state_dict().values()], [*reference.state_dict().values()])


def test_counts_survive_a_checkpoint() -> None:
    run = Run(OPTIMIZERS[0])
    run.step(0.0)
    run.step(float("nan"))
    saved = copy.deepcopy(run.guard.state_dict())
    other = Run(OPTIMIZERS[0])
    other.guard.load_state_dict(saved)
    other.steps = 2
    other.step(float("nan"))
    counts = other.guard.read()
    assert (counts.total, counts.in_a_row, counts.first_step) == (2, 2, 1)
    assert counts.own_loss_step == 2, "what this process has seen itself"

"""A captured step on a GPU: the values of eager steps, no wait for the device, exact resume."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
from resnet_dist.optim.ema import ModelEma
from resnet_dist.optim.scaling import build_scaler
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.performance.cuda_graph import (
    WARM_UP_STEPS,
    CudaGraphs,
    GraphedGradients,
    GraphedStep,
)
from resnet_dist.performance.fused_network import FusedNetwork
from resnet_dist.state import TrainState
from resnet_dist.step import EagerStep, Step, StepSettings
from tests.gpu.waits import no_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
Result = tuple[float, dict[str, float]]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def make_batch(seed: int, *, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 3, size, size, generator=generator)
    labels = torch.randint(0, 10, (2, 16), generator=generator).cuda()
    shares = torch.rand(16, generator=generator).cuda()
    images = images.cuda().contiguous(memory_format=torch.channels_last)
    return Batch(seed, images, labels[0], np.arange(16), MixedLabels(labels[1], shares))


class Run:
    """A small run on the GPU. Both kinds take their learning rates as float32."""

    def __init__(
        self,
        *,
        graphed: bool,
        optim: str = "sgd",
        precision: str = "bfloat16",
        moves_momentum: bool = False,
        fused: bool = False,
    ) -> None:
        device = torch.device("cuda")
        config = ModelConfig(name="resnet18", width=16, stem="cifar")
        model = build_model(config, num_classes=10, seed=0)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = TrainState(
            model=model,
            optimizer=build_optimizer(OptimConfig(name=optim), model),  # type: ignore[arg-type]
            scaler=build_scaler(device, precision=precision, loss_scale=None),
            average=ModelEma(model, 0.9),
            meter=TrainMeter(device),
            guard=NonFiniteGuard(model),
            losses=LossHistory(),
        )
        eager = EagerStep(
            network=FusedNetwork(model) if fused else model,
            optimizer=self.state.optimizer,
            scaler=self.state.scaler,
            settings=StepSettings(2, 1 / 32, DTYPES[precision], LossConfig(), 1.0, None),
            on_logits=self.state.meter.update,
            guard=self.state.guard,
        )
        # An eager run goes through the same class, so that it has the same learning rates.
        never = 10**9
        warm_up_steps = WARM_UP_STEPS if graphed else never
        self.moves_momentum = moves_momentum
        kind = GraphedGradients if moves_momentum else GraphedStep
        self.step: Step = kind(eager, CudaGraphs(device), warm_up_steps=warm_up_steps)

    def take(self, *, bad: bool = False, size: int = 32, read: bool = True) -> Result | None:
        step = self.state.step
        batches = [make_batch(2 * step + micro_batch, size=size) for micro_batch in range(2)]
        if bad:
            batches[1].images[2, 1, 0, 0] = float("inf")
        return self.take_batches(batches, read=read)

    def take_batches(self, batches: list[Batch], *, read: bool) -> Result | None:
        lr = 0.05 / (1 + self.state.step)
        momentum = 0.95 - 0.01 * self.state.step if self.moves_momentum else None
        apply_schedule(self.state.optimizer, lr=lr, momentum=momentum)
        grad_norm = self.step(iter(batches), step=self.state.step)
        self.state.step += 1
        assert self.state.average is not None
        self.state.average.update(self.state.model)
        if not read:
            return None
        return float(grad_norm), self.state.meter.read_and_reset(lambda tensor: tensor)


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, NaNs included."""
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
def test_captured_steps_have_the_bits_of_eager_ones(optim: str, precision: str) -> None:
    """With deterministic kernels; rates change, and one replayed step is skipped."""
    eager, graphed = (Run(graphed=g, optim=optim, precision=precision) for g in (False, True))
    for step in range(10):
        assert_equal(eager.take(bad=step == 6), graphed.take(bad=step == 6))
    assert_equal(eager.state.state_dict(), graphed.state.state_dict())
    counts = graphed.state.guard.read()
    assert (counts.total, counts.first_step, counts.own_loss_step) == (1, 6, 6)


@pytest.mark.parametrize("optim", ["sgd", "lars", "lamb"])
def test_with_fused_batch_norm_too(optim: str) -> None:
    eager, graphed = (Run(graphed=g, optim=optim, fused=True) for g in (False, True))
    for step in range(10):
        assert_equal(eager.take(bad=step == 6), graphed.take(bad=step == 6))
    assert_equal(eager.state.state_dict(), graphed.state.state_dict())


@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_a_momentum_that_moves(optim: str, precision: str) -> None:
    eager, graphed = (
        Run(graphed=g, optim=optim, precision=precision, moves_momentum=True) for g in (False, True)
    )
    for step in range(10):
        assert_equal(eager.take(bad=step == 6), graphed.take(bad=step == 6))
    assert_equal(eager.state.state_dict(), graphed.state.state_dict())


def test_sizes_that_change_have_graphs_of_their_own() -> None:
    eager, graphed = Run(graphed=False), Run(graphed=True)
    for size in (32, 32, 32, 32, 48, 48, 48, 48, 48, 32, 48, 32):
        assert_equal(eager.take(size=size), graphed.take(size=size))
    assert_equal(eager.state.state_dict(), graphed.state.state_dict())


@pytest.mark.parametrize("precision", list(DTYPES))
def test_a_replayed_step_does_not_wait_for_the_device(precision: str) -> None:
    run = Run(graphed=True, precision=precision)
    for _ in range(WARM_UP_STEPS + 1):
        run.take(read=False)
    batches = [make_batch(100), make_batch(101)]
    with no_waits():
        for _ in range(5):
            run.take_batches(batches, read=False)
    assert run.state.guard.read().total == 0


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_run_goes_on_from_a_checkpoint(optim: str) -> None:
    """In another process's objects, and in its own after the capture."""
    whole, other = Run(graphed=True, optim=optim), Run(graphed=True, optim=optim)
    for _ in range(6):
        whole.take()
    saved = copy.deepcopy(whole.state.state_dict())
    assert all(type(group["lr"]) is float for group in saved["optimizer"]["param_groups"])
    for _ in range(6):
        whole.take()
    at_the_end = copy.deepcopy(whole.state.state_dict())
    for run in (other, whole):
        run.state.load_state_dict(copy.deepcopy(saved), is_main=True)
        for _ in range(6):
            run.take()
        assert_equal(run.state.state_dict(), at_the_end)


def test_evaluation_between_replays_changes_nothing() -> None:
    """It allocates and runs on the same stream, beside the graphs' pool."""
    plain, disturbed = Run(graphed=True), Run(graphed=True)
    for _ in range(10):
        one, other = plain.take(), disturbed.take()
        assert_equal(one, other)
        disturbed.state.model.eval()
        with torch.inference_mode():
            disturbed.state.model(torch.randn(64, 3, 48, 48, device="cuda"))
        disturbed.state.model.train()
    assert_equal(plain.state.state_dict(), disturbed.state.state_dict())

"""What a GPU and a CUDA graph ask of a step, seen without one: nothing in it waits for the device,
nothing moves between host and device, and no activation changes its memory layout.

Tensors are fake ones (shapes and devices without data), but for the layouts, which are those of the
CPU's kernels. That the same holds of the GPU's kernels is tested in `tests/gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_dist.config import LossConfig, ModelConfig, OptimConfig
from resnet_dist.data.batch import Batch, MixedLabels
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import ModelEma
from resnet_dist.performance.fused_network import FusedNetwork
from resnet_dist.step import EagerStep, StepSettings

NUM_CLASSES = 5
PLAIN = StepSettings(1, 1 / 4, None, LossConfig(), None, None)
EVERYTHING = replace(
    PLAIN,
    accumulation_steps=2,
    loss=LossConfig(name="binary_cross_entropy", label_smoothing=0.1, bce_target_threshold=0.2),
    clip_grad_norm=1.0,
)


def fake_model(device: torch.device, **config: Any) -> nn.Module:
    """A network of fake tensors, its weights channels-last. Inside a FakeTensorMode only."""
    with torch.device("meta"):
        model = build_model(ModelConfig(**config), num_classes=NUM_CLASSES, seed=0)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                is_image = parameter.ndim == 4
                layout = torch.channels_last if is_image else torch.contiguous_format
                own = torch.empty(parameter.shape, device=device, memory_format=layout)
                module._parameters[name] = nn.Parameter(own)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return model


class FakeRun:
    """A step of fake tensors, with everything around it."""

    def __init__(
        self,
        device: torch.device,
        settings: StepSettings,
        *,
        optim: str = "sgd",
        scaled: bool,
        fused: bool = False,
    ) -> None:
        self.device = device
        self.model = fake_model(device, name="resnet18", width=8)
        self.average = ModelEma.__new__(ModelEma)  # fake tensors cannot be copied deeply
        self.average.decay = 0.9
        self.average.module = fake_model(device, name="resnet18", width=8)
        optimizer = build_optimizer(OptimConfig(name=optim), self.model)  # type: ignore[arg-type]
        self.step = EagerStep(
            network=FusedNetwork(self.model) if fused else self.model,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=scaled),
            settings=settings,
            on_logits=TrainMeter(device).update,
            guard=NonFiniteGuard(self.model),
        )

    def batches(self) -> Iterator[Batch]:
        for _ in range(self.step.settings.accumulation_steps):
            labels = torch.zeros(4, dtype=torch.int64, device=self.device)
            shares = torch.ones(4, device=self.device)
            images = torch.empty(4, 3, 32, 32, device=self.device)
            yield Batch(
                0,
                images.contiguous(memory_format=torch.channels_last),
                labels,
                np.arange(4),
                MixedLabels(labels, shares) if self.step.settings is not PLAIN else None,
            )

    def take(self, watch: TorchDispatchMode) -> None:
        """Two steps (the first makes lazy state), and the average's update."""
        number = torch.zeros((), dtype=torch.int64, device=self.device)
        for _ in range(2):
            given = list(self.batches())
            with watch:
                self.step(iter(given), step=number)
        with watch:
            self.average.update(self.model)


class Watch(TorchDispatchMode):
    """Notes the operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.devices: set[tuple[str, str]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # It returns nothing, and has no form for fake tensors of a GPU.
        result = None if "_fused_sgd_" in str(func) else func(*args, **(kwargs or {}))
        self.names.append(str(func))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        self.devices |= {(str(func), tensor.device.type) for tensor in tensors}
        return result


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(
    ("settings", "optim", "fused"),
    [
        (PLAIN, "sgd", False),
        (EVERYTHING, "sgd", False),
        (EVERYTHING, "adamw", False),
        (EVERYTHING, "sgd", True),
        (PLAIN, "lars", False),
        (PLAIN, "lamb", True),
    ],
)
def test_nothing_in_a_step_asks_for_a_value(
    settings: StepSettings, optim: str, fused: bool, precision: str
) -> None:
    """Forward, backward and update: a fake tensor has no value that could be asked for."""
    chosen = replace(settings, autocast_dtype=PRECISIONS[precision])
    watch = Watch()
    with FakeTensorMode():
        scaled = precision == "float16"
        run = FakeRun(torch.device("cpu"), chosen, optim=optim, scaled=scaled, fused=fused)
        run.take(watch)
    assert any("convolution_backward" in name for name in watch.names)
    assert any("batch_norm_backward_apply" in name for name in watch.names) is fused
    updates = "_foreach_sub_" if optim in ("lars", "lamb") else "_fused_"
    assert any(updates in name for name in watch.names)
    # What waits for a GPU even where a fake tensor knows an answer.
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.")
    assert [name for name in watch.names if any(wait in name for wait in waits)] == []


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda loss: loss.item(),
    "bool": bool,
    "tolist": lambda loss: loss[None].tolist(),
    "nonzero": lambda loss: loss[None].nonzero(),
    "select": lambda loss: loss[None][loss[None] > 0],
}


@pytest.mark.parametrize("name", list(WAITS))
def test_a_step_that_asks_for_a_value_is_found_out(name: str) -> None:
    with FakeTensorMode():
        run = FakeRun(torch.device("cpu"), PLAIN, scaled=False)
        run.step = replace(run.step, on_logits=lambda loss, *_: WAITS[name](loss))
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            run.take(Watch())


def _gradients_of(model: nn.Module) -> Callable[..., None]:
    """Stands for the backward pass, which needs the GPU's driver even for fake tensors."""

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    return backward


@pytest.mark.parametrize("optim", ["sgd", "lars", "lamb"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_nothing_in_a_step_crosses_to_or_from_the_device(
    settings: StepSettings, scaled: bool, optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither copies nor numbers that are tensors of the host. All but the backward pass."""
    assert crossings(settings, scaled, monkeypatch, optim=optim) == set()


@pytest.mark.parametrize(
    "cross",
    [lambda loss: loss.cpu(), lambda loss: loss + torch.ones(()), lambda loss: loss.to("cpu")],
    ids=["to the host", "from the host", "explicitly"],
)
def test_a_step_that_crosses_is_found_out(
    cross: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert crossings(PLAIN, False, monkeypatch, lambda loss, *_: cross(loss)) != set()


def crossings(
    settings: StepSettings,
    scaled: bool,
    monkeypatch: pytest.MonkeyPatch,
    on_logits: Any = None,
    *,
    optim: str = "sgd",
) -> set[tuple[str, str]]:
    """Operations of a step on a fake GPU that touch a tensor of the host."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    watch = Watch()
    with FakeTensorMode():
        run = FakeRun(torch.device("cuda:0"), settings, optim=optim, scaled=scaled)
        assert run.step.scaler.is_enabled() is scaled
        if on_logits is not None:
            run.step = replace(run.step, on_logits=on_logits)
        monkeypatch.setattr(Tensor, "backward", _gradients_of(run.model))
        run.take(watch)
    updates = "_fused_sgd_" if optim == "sgd" else "_foreach_sub_"
    assert any(updates in name for name in watch.names)
    return {(name, device) for name, device in watch.devices if device != "cuda"}


def layout(tensor: Tensor) -> str | None:
    """Of a batch of activations; None where the layouts are the same, or it is none."""
    if tensor.ndim != 4 or tensor.shape[1] == 1 or tensor.shape[2:].numel() == 1:
        return None
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels last"
    return "contiguous" if tensor.is_contiguous() else "another"


class Layouts(TorchDispatchMode):
    """Notes the operations that take or give anything but channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[tuple[str, list[int]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        for tensor in tensors:
            if layout(tensor) not in (None, "channels last"):
                self.wrong.append((func.overloadpacket.__name__, list(tensor.shape)))
        return result


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stem", ["standard", "d"])
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_no_activation_changes_its_layout(stem: str, precision: str, fused: bool) -> None:
    """ResNet-50, forward and backward, on the CPU's kernels."""
    config = ModelConfig(name="resnet50", width=16, stem=stem)  # type: ignore[arg-type]
    model = build_model(config, num_classes=NUM_CLASSES, seed=0)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    dtype = PRECISIONS[precision]
    step = EagerStep(
        network=FusedNetwork(model) if fused else model,
        optimizer=build_optimizer(OptimConfig(), model),
        scaler=torch.amp.GradScaler("cpu", enabled=precision == "float16"),
        settings=replace(PLAIN, autocast_dtype=dtype),
        on_logits=TrainMeter(torch.device("cpu")).update,
        guard=NonFiniteGuard(model),
    )
    layouts = Layouts()
    with layouts:
        step(iter([Batch(0, images, torch.zeros(2, dtype=torch.int64), np.arange(2))]), step=0)
    # The gradient of the last pooling is spread over the image in the layout of its own strides,
    # which are ambiguous, and brought to the activation's by what reads it.
    known = ("expand", "div", "clone" if fused else "threshold_backward")
    assert [name for name, _ in layouts.wrong if name not in known] == []
    assert {tuple(shape) for _, shape in layouts.wrong} <= {(2, 512, 3, 3)}


def test_a_change_of_layout_is_found_out() -> None:
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with Layouts() as layouts:
        nn.functional.relu(images)
        assert layouts.wrong == []
        images.contiguous()
    assert [name for name, _ in layouts.wrong] == ["clone"]

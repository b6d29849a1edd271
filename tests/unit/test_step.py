"""One step against a reference of ten lines, and what is due when."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from resnet_dist.config import CheckpointConfig, EvalConfig, FaultsConfig, LogConfig, LossConfig
from resnet_dist.data.batch import Batch
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.optim.sam import Sharpness
from resnet_dist.optim.scaling import build_scaler
from resnet_dist.run.cadence import Cadence
from resnet_dist.step import EagerStep, StepSettings

Seen = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def make_batches(sizes: list[int]) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        yield Batch(
            step=0,
            images=torch.randn(size, 3, 2, 2, generator=generator),
            labels=torch.randint(0, 5, (size,), generator=generator),
            sample_ids=np.arange(size),
        )


def settings(**changes: object) -> StepSettings:
    values: dict[str, object] = {
        "accumulation_steps": 3,
        "gradient_scale": 1 / 10,
        "autocast_dtype": None,
        "loss": LossConfig(label_smoothing=0.1),
        "clip_grad_norm": None,
        "clip_grad_value": None,
    }
    return StepSettings(**(values | changes))  # type: ignore[arg-type]


def step(model: nn.Module, chosen: StepSettings, **changes: object) -> torch.Tensor:
    parts: dict[str, object] = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5, fused=True),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "on_logits": lambda *_: None,
        "guard": NonFiniteGuard(model),
    }
    taken = EagerStep(network=model, settings=chosen, **(parts | changes))  # type: ignore[arg-type]
    return taken(make_batches([4, 3, 3]), step=0)


@pytest.mark.parametrize("clip", ["norm", "value", None])
def test_uneven_micro_batches_give_the_step_of_the_whole_batch(clip: str | None) -> None:
    model, reference = make_model(), make_model()
    batches = list(make_batches([4, 3, 3]))
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    cross_entropy(reference(images), labels, label_smoothing=0.1).backward()
    norm = torch.cat(
        [p.grad.flatten() for p in reference.parameters() if p.grad is not None]
    ).norm()
    if clip == "norm":
        nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    elif clip == "value":
        nn.utils.clip_grad_value_(reference.parameters(), 0.01)
    torch.optim.SGD(reference.parameters(), lr=0.5).step()

    chosen = settings(
        clip_grad_norm=0.05 if clip == "norm" else None,
        clip_grad_value=0.01 if clip == "value" else None,
    )
    grad_norm = step(model, chosen)
    assert grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert one.grad is None


def test_meters_see_every_micro_batch() -> None:
    seen: Seen = []
    step(make_model(), settings(), on_logits=lambda *values: seen.append(values))
    assert [len(labels) for _, _, labels in seen] == [4, 3, 3]
    for loss, logits, labels in seen:
        expected = cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
        torch.testing.assert_close(loss, expected)
        assert not loss.requires_grad


def test_float16_skips_a_step_whose_gradients_overflow() -> None:
    model = make_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    step(model, settings(autocast_dtype=torch.float16), scaler=scaler)
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    after = [parameter.detach().clone() for parameter in model.parameters()]
    huge = settings(autocast_dtype=torch.float16, gradient_scale=1e30)
    step(model, huge, scaler=scaler)
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), after, strict=True))
    assert scaler.get_scale() == 2.0**15


def static_scaler(scale: float) -> torch.amp.GradScaler:
    return build_scaler(torch.device("cpu"), precision="float16", loss_scale=scale)


def test_a_static_loss_scale_stays_and_still_skips() -> None:
    model = make_model()
    scaler = static_scaler(128.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    huge = settings(autocast_dtype=torch.float16, gradient_scale=1e30)
    step(model, huge, scaler=scaler)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 128.0
    scaler.set_growth_interval(1)  # a dynamic scale would be doubled after each good step
    for _ in range(3):
        step(model, settings(autocast_dtype=torch.float16), scaler=scaler)
    assert scaler.get_scale() == 128.0
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))


def test_a_static_loss_scale_has_the_bits_of_a_dynamic_one_of_the_same_size() -> None:
    models = make_model(), make_model()
    scalers = static_scaler(256.0), torch.amp.GradScaler("cpu", init_scale=256.0)
    for model, scaler in zip(models, scalers, strict=True):
        step(model, settings(autocast_dtype=torch.float16), scaler=scaler)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_static_loss_scale_is_a_setting_not_a_state() -> None:
    """A checkpoint neither brings a dynamic scale, nor makes a dynamic one static."""
    static, dynamic = static_scaler(128.0), torch.amp.GradScaler("cpu", init_scale=4.0)
    static.load_state_dict(dynamic.state_dict())
    assert static.get_scale() == 128.0
    assert static.state_dict() == {}
    assert not build_scaler(torch.device("cpu"), precision="bfloat16", loss_scale=None).is_enabled()
    assert build_scaler(torch.device("cpu"), precision="float16", loss_scale=None).is_enabled()


def test_bfloat16_is_close_to_float32() -> None:
    model, reference = make_model(), make_model()
    step(model, settings(autocast_dtype=torch.bfloat16))
    step(reference, settings())
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def cadence(**changes: int | None) -> Cadence:
    checkpoint = CheckpointConfig(
        every_steps=changes.get("save_steps"), every_epochs=changes.get("save_epochs") or 1
    )
    return Cadence(
        steps_per_epoch=10,
        num_steps=35,
        stop_step=changes.get("stop") or 35,
        target_top1=None,
        log=LogConfig(every_steps=4),
        eval=EvalConfig(
            every_epochs=changes.get("eval_epochs") or 1, first_epoch=changes.get("eval_first")
        ),
        checkpoint=checkpoint,
        faults=FaultsConfig(replica_check_every_steps=changes.get("check_steps")),
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_of_sam_takes_the_gradient_uphill(accumulation: int) -> None:
    """Against a loop of its own, and batch norm sees the images once."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 5, (12,), generator=generator)
    model, reference = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))
        for _ in range(2)
    )
    reference.load_state_dict(model.state_dict())
    seen: Seen = []
    parts: dict[str, object] = {"sharpness": Sharpness(0.1, every_steps=2)}
    chosen = settings(accumulation_steps=accumulation, gradient_scale=1 / 12, loss=LossConfig())
    size = 12 // accumulation
    batches = [
        Batch(0, images[low : low + size], labels[low : low + size], np.arange(size))
        for low in range(0, 12, size)
    ]
    taken = EagerStep(
        network=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        settings=chosen,
        on_logits=lambda *values: seen.append(values),
        guard=NonFiniteGuard(model),
        **parts,  # type: ignore[arg-type]
    )
    for number in (0, 1):
        taken(iter(batches), step=number)

    def backward() -> None:
        for batch in batches:
            total = cross_entropy(reference(batch.images), batch.labels, reduction="sum")
            (total / 12).backward()

    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    backward()
    norm = nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None])
    ways = [0.1 * p.grad / norm for p in reference.parameters() if p.grad is not None]
    statistics = {name: value.clone() for name, value in reference.named_buffers()}
    optimizer.zero_grad()
    with torch.no_grad():
        torch._foreach_add_(list(reference.parameters()), ways)
    backward()
    with torch.no_grad():
        torch._foreach_sub_(list(reference.parameters()), ways)
        for name, value in reference.named_buffers():
            value.copy_(statistics[name])
    optimizer.step()
    optimizer.zero_grad()
    backward()
    optimizer.step()
    assert len(seen) == 2 * accumulation
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_what_is_due_when() -> None:
    steps = range(1, 36)
    plain = cadence()
    assert [s for s in steps if plain.logs(s)] == [4, 8, 10, 12, 16, 20, 24, 28, 30, 32]
    assert [s for s in steps if plain.evaluates(s)] == [10, 20, 30, 35]
    assert [s for s in steps if plain.saves(s)] == [10, 20, 30, 35]
    rare = cadence(eval_epochs=2, save_epochs=2, save_steps=15, stop=33)
    assert [s for s in steps if rare.evaluates(s)] == [20, 35]
    assert [s for s in steps if rare.saves(s)] == [15, 20, 30, 33, 35]
    late = cadence(eval_epochs=2, eval_first=1)
    assert [s for s in steps if late.evaluates(s)] == [10, 30, 35]


def test_replicas_are_compared_at_intervals_and_before_what_is_kept() -> None:
    steps = range(1, 36)
    checked = cadence(check_steps=7, save_epochs=2, eval_epochs=2)
    due = [s for s in steps if checked.checks_replicas(s)]
    assert due == [7, 10, 14, 20, 21, 28, 30, 35]
    assert {s for s in steps if checked.saves(s) or checked.evaluates(s)} <= set(due)
    assert not any(cadence().checks_replicas(s) for s in steps)

"""The measurements of one variant on one device; none of them knows what comes before or after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, repeat
from typing import Any

import torch
from gpu.kernel_time import record, summarise
from gpu.ours import Ours, build_ours, restart
from gpu.rivals import RIVALS, Case
from torch import Tensor
from torch.nn.functional import interpolate, pad

from resnet_dist.data.batch import Batch
from resnet_dist.performance.modes import PLAIN, Mode

CHECK_BATCHES = 10
CHECK_LR = 0.02
REFERENCE_SEEDS = (0, 1, 2)
PROFILED_STEPS = 3


@dataclass
class Variant:
    """Something that takes steps."""

    step: Callable[[], object]
    """With what the loop does at its log intervals."""
    bare_step: Callable[[], object]
    """Without it."""
    ours: Ours | None = None
    start: dict[str, Tensor] | None = None
    """Of ours: the first weights."""


def overrides_of(case: Case, mode: Mode, device: torch.device, *, seed: int = 0) -> list[str]:
    """The settings of ours for a case."""
    return [
        f"model.name={case.model}",
        f"model.width={case.width}",
        f"data.train_size={case.size}",
        f"train.precision={case.dtype}",
        f"train.global_batch_size={case.batch}",
        f"optim.lr={CHECK_LR}",
        f"seed={seed}",
        f"dist.device={device.type}",
        "data.loader=synthetic",
        *mode.settings,
    ]


def build_mode(case: Case, mode: Mode, device: torch.device, *, seed: int = 0) -> Variant:
    """Ours in a mode."""
    ours = build_ours(overrides_of(case, mode, device, seed=seed))
    start = {name: value.clone() for name, value in ours.state.model.state_dict().items()}
    fixed: Iterator[Batch] = repeat(ours.fixed_batches()[0])
    every = ours.config.log.every_steps
    calls = 0

    def bare_step() -> None:
        ours.step(fixed, 0)

    def step() -> None:
        nonlocal calls
        bare_step()
        calls += 1
        if calls % every == 0:
            ours.read()

    return Variant(step, bare_step, ours, start)


def build_rival(case: Case, name: str, device: torch.device) -> Variant:
    """A loop of others, on the batch that ours gets."""
    images, labels = synthetic(case, device)
    step = RIVALS[name](case, images, labels, device)
    return Variant(step, step)


def synthetic(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise, float32 in channels-last memory, and labels."""
    shape = case.batch, 3, case.size, case.size
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(1000, (case.batch,), device=device)


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turns(
    first: Variant | None,
    second: Variant,
    case: Case,
    device: torch.device,
    *,
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """Images/s of both in alternating rounds, and the peak memory of `second`, GiB. `second` must
    have been warmed up."""
    rates: dict[str, list[float]] = {"eager": [], "images_per_second": []}
    peak = 0
    for number in range(rounds):
        pairs = [("eager", first), ("images_per_second", second)]
        for name, variant in pairs if number % 2 == 0 else pairs[::-1]:
            if variant is None:
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            finish(device)
            start = time.perf_counter()
            for _ in range(steps):
                variant.step()
            finish(device)
            rates[name].append(steps * case.batch / (time.perf_counter() - start))
            if device.type == "cuda" and variant is second:
                peak = max(peak, torch.cuda.max_memory_allocated())
    return {**rates, "peak_bytes": peak}


def check_syncs(variant: Variant, device: torch.device) -> str:
    """ "none", or the first thing in a step that makes the host wait for the device."""
    if device.type != "cuda":
        return "no GPU"
    finish(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(PROFILED_STEPS):
            variant.bare_step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def profile_of(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Shares of the groups of kernels, of idleness, and the longest kernels."""
    return profile_steps(variant.bare_step, device)


def profile_steps(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The same for whatever takes a step, `PROFILED_STEPS` of them."""
    summary = summarise(record(step, PROFILED_STEPS, device), PROFILED_STEPS)
    return {
        "shares": summary.shares,
        "idle": summary.idle,
        "step_ms": summary.ms,
        "longest": [[group, name[:160], share] for group, name, share in summary.longest],
    }


def learn(variant: Variant, steps: int) -> float:
    """Mean loss over the last turn of so many steps from the first weights on a few batches
    whose labels can be told from the images."""
    ours = variant.ours
    assert ours is not None
    assert variant.start is not None
    restart(ours, variant.start)
    batches: Iterator[Batch] = cycle(_learnable(ours.fixed_batches()[0]))
    for number in range(steps - CHECK_BATCHES):
        ours.step(batches, number)
    ours.read()
    for number in range(CHECK_BATCHES):
        ours.step(batches, steps - CHECK_BATCHES + number)
    return ours.read()


def _learnable(batch: Batch, num_classes: int = 100) -> list[Batch]:
    """Batches in the form of the given one: a coarse pattern for each class, under noise."""
    generator = torch.Generator().manual_seed(7)
    n, channels, size, _ = batch.images.shape
    patterns = torch.randn(num_classes, 3, 4, 4, generator=generator)
    batches = []
    for _ in range(CHECK_BATCHES):
        labels = torch.randint(num_classes, (n,), generator=generator)
        noise = torch.randn(n, 3, size // 4, size // 4, generator=generator)
        images = interpolate(patterns[labels], size=(size, size))
        images = images + 2 * interpolate(noise, size=(size, size))
        images = pad(images, (0, 0, 0, 0, 0, channels - 3)).to(batch.images)
        images = images.contiguous(memory_format=torch.channels_last)
        batches.append(replace(batch, images=images, labels=labels.to(batch.labels)))
    return batches


def reference_losses(case: Case, device: torch.device, steps: int) -> list[float]:
    """`learn` in real float32 (no tf32) from the weights of several seeds; the first seed is that
    of all modes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        exact = replace(case, dtype="float32")
        return [
            learn(build_mode(exact, PLAIN, device, seed=seed), steps) for seed in REFERENCE_SEEDS
        ]
    finally:
        torch.backends.cudnn.allow_tf32 = before


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes/s of a copy (read and written) and FLOP/s of a bfloat16 product of random matrices."""
    return {"copy_bytes_s": _copy_rate(device), "matmul_flops": _product_rate(device)}


def _copy_rate(device: torch.device) -> float:
    size = 2**32 if device.type == "cuda" else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _product_rate(device: torch.device) -> float:
    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    return 2 * n**3 / _best(lambda: a @ b, device)


def _best(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: the median of rounds of ten."""
    times = []
    for number in range(8):
        finish(device)
        start = time.perf_counter()
        for _ in range(10):
            function()
        finish(device)
        if number >= 3:
            times.append((time.perf_counter() - start) / 10)
    return sorted(times)[len(times) // 2]

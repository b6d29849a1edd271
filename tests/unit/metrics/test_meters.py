"""Meters: exact in any order, on any number of ranks, cut anywhere, without waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from resnet_dist.metrics.meters import EvalMeter, TrainMeter, count_correct
from resnet_dist.metrics.throughput import Throughput
from tests.clock import FakeClock

CPU = torch.device("cpu")
MicroBatch = tuple[Tensor, Tensor, Tensor]


def micro_batches(count: int, *, classes: int = 10, seed: int = 0) -> list[MicroBatch]:
    """(loss sum, logits, labels) of uneven sizes."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i in range(count):
        logits = torch.randn(3 + i % 4, classes, generator=generator) * 3
        labels = torch.randint(classes, (3 + i % 4,), generator=generator)
        result.append((cross_entropy(logits, labels, reduction="sum"), logits, labels))
    return result


def alone(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


def summed(values: list[Callable[[Callable[[Tensor], Tensor]], object]]) -> list[object]:
    """Call each rank's function with a sum over all ranks."""
    seen: list[list[Tensor]] = []
    for value in values:  # the first pass only collects what each rank would send
        sent: list[Tensor] = []
        value(lambda tensor, sent=sent: sent.append(tensor.clone()) or tensor)  # type: ignore[misc]
        seen.append(sent)
    totals = [torch.stack(parts).sum(0) for parts in zip(*seen, strict=True)]
    results = []
    for value in values:
        queue = list(totals)
        results.append(value(lambda _, queue=queue: queue.pop(0).clone()))  # type: ignore[misc]
    return results


def reference_counts(logits: Tensor, labels: Tensor) -> list[int]:
    """By sorting each row, equal logits in the order of their classes."""
    counts = [0, 0]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if any(math.isnan(value) for value in row):
            continue
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        counts[0] += label in order[:1]
        counts[1] += label in order[:5]
    return counts


@pytest.mark.parametrize("classes", [2, 4, 5, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_equal_those_of_a_stable_sort(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(64, classes, generator=generator)
    logits[:20] = logits[:20].round()  # ties
    logits[20] = 0.0
    logits[21, 0], logits[22, 1], logits[23, 1] = math.nan, math.inf, -math.inf
    logits[24] = math.inf
    labels = torch.randint(classes, (64,), generator=generator)
    logits = logits.to(dtype)
    assert count_correct(logits, labels).tolist() == reference_counts(logits, labels)


def test_with_fewer_than_five_classes_all_are_among_the_first_five() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    assert count_correct(logits, labels)[1] == 7


def test_train_meter_gives_means() -> None:
    meter = TrainMeter(CPU)
    parts = micro_batches(9)
    for part in parts:
        meter.update(*part)
    result = meter.read_and_reset(alone)
    logits, labels = torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])
    samples = len(labels)
    top1, top5 = reference_counts(logits, labels)
    assert result["samples"] == samples
    assert (result["top1"], result["top5"]) == (top1 / samples, top5 / samples)
    assert result["loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    meter.update(*parts[0])
    assert meter.read_and_reset(alone)["samples"] == len(parts[0][2])


def test_an_interval_cut_by_a_kill_and_resumed_on_other_ranks_is_equal_bit_for_bit() -> None:
    parts = micro_batches(24)
    whole = TrainMeter(CPU)
    for part in parts:
        whole.update(*part)
    expected = whole.read_and_reset(alone)

    before = [TrainMeter(CPU) for _ in range(3)]
    for i, part in enumerate(parts[:11]):
        before[i % 3].update(*part)
    states = summed([meter.state for meter in before])
    assert isinstance(states[0], Tensor)
    assert states[0].dtype == torch.int64
    # `state` leaves the ranks as they were: the uninterrupted run goes on.
    assert [int(s) for s in before[0].state(alone)] != [int(s) for s in states[0]]

    after = [TrainMeter(CPU) for _ in range(2)]
    after[0].load_state(states[0])
    after[1].update(*parts[0])
    after[1].load_state(None)
    for i, part in enumerate(reversed(parts[11:])):  # in any order
        after[i % 2].update(*part)
    total = torch.stack([meter.state(alone) for meter in after]).sum(0)
    assert after[0].read_and_reset(lambda _: total) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_loss_that_is_not_finite_shows_and_does_not_stay(bad: float) -> None:
    meter = TrainMeter(CPU)
    good = micro_batches(1)[0]
    meter.update(*good)
    meter.update(torch.tensor(bad), *good[1:])
    result = meter.read_and_reset(alone)
    assert math.isnan(result["loss"])
    assert result["samples"] == 2 * len(good[2])
    meter.update(*good)
    assert math.isfinite(meter.read_and_reset(alone)["loss"])


class NoReading(TorchFunctionMode):
    """Refuses what brings values to the host, or has a shape that depends on them."""

    FORBIDDEN: tuple[str, ...] = (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "nonzero",
        "masked_select",
        "equal",
    )
    FORBIDDEN += ("__bool__", "__int__", "__float__", "__index__", "__array__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__ not in self.FORBIDDEN, func.__name__
        return func(*args, **(kwargs or {}))


def test_updates_never_read_a_value() -> None:
    loss, logits, labels = micro_batches(1)[0]
    with NoReading():
        TrainMeter(CPU).update(loss, logits, labels)
        EvalMeter(3, CPU).update(1, loss, logits, labels)
        with pytest.raises(AssertionError, match="item"):
            loss.item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_updates_never_wait_for_a_gpu_and_count_as_on_the_cpu() -> None:
    parts = micro_batches(5, classes=100)
    device = torch.device("cuda")
    on_device = [[tensor.to(device) for tensor in part] for part in parts]
    meters = [TrainMeter(CPU), TrainMeter(device)]
    evaluations = [EvalMeter(5, CPU), EvalMeter(5, device)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i, (loss, logits, labels) in enumerate(on_device):
            meters[1].update(loss, logits, labels)
            evaluations[1].update(i, loss, logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for i, part in enumerate(parts):
        meters[0].update(*part)
        evaluations[0].update(i, *part)
    assert meters[0].read_and_reset(alone) == meters[1].read_and_reset(alone)
    assert evaluations[0].result(alone) == evaluations[1].result(alone)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_evaluation_is_the_same_for_any_number_of_ranks(world_size: int) -> None:
    parts = micro_batches(17, seed=3)
    expected_loss = sum(float(loss) for loss, _, _ in parts) / sum(len(p[2]) for p in parts)
    meters = [EvalMeter(len(parts), CPU) for _ in range(world_size)]
    for i, part in enumerate(parts):
        meters[i % world_size].update(i, *part)
    for result in summed([meter.result for meter in meters]):
        assert isinstance(result, dict)
        assert result["loss"] == expected_loss
        assert result["samples"] == sum(len(p[2]) for p in parts)
        counts = [sum(c) for c in zip(*(reference_counts(*p[1:]) for p in parts), strict=True)]
        assert [result["top1"], result["top5"]] == [c / result["samples"] for c in counts]


def test_throughput_counts_waiting_and_leaves_out_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("resnet_dist.metrics.throughput.time", clock)

    throughput = Throughput(CPU, global_batch_size=10)

    def wait_for_batch() -> None:
        with throughput.waiting():
            clock.sleep(0.5)

    clock.sleep(1000)  # building the rest
    throughput.begin()
    for _ in range(2):
        wait_for_batch()
        clock.sleep(1.5)
        throughput.count_step()
    with throughput.paused():
        clock.sleep(77)
    result = throughput.read_and_reset()
    assert result["images_per_second"] == pytest.approx(5.0)
    assert result["step_time_ms"] == pytest.approx(2000.0)
    assert result["data_wait_share"] == pytest.approx(0.25)
    assert 0.01 < result["memory_gib"] < 100
    wait_for_batch()
    throughput.count_step()
    assert throughput.read_and_reset()["data_wait_share"] == pytest.approx(1.0)


def test_a_gpus_memory_is_torchs_and_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock of the device: DALI and NCCL allocate beside torch."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (75 * 2**30, 80 * 2**30))
    result = Throughput(torch.device("cuda"), global_batch_size=1).read_and_reset()
    assert (result["memory_gib"], result["device_memory_gib"]) == (3.0, 5.0)
    assert "device_memory_gib" not in Throughput(CPU, global_batch_size=1).read_and_reset()

"""Rates by the host's clock: images/s, step time, share of time spent waiting for data."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Times one log interval after another."""

    def __init__(self, device: torch.device, *, global_batch_size: int) -> None:
        self._device = device
        self._global_batch_size = global_batch_size
        self._start = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def begin(self) -> None:
        """Begin the first interval: what was built since construction is not training."""
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count_step(self) -> None:
        """Count a step that was dispatched."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside, such as an evaluation."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def read_and_reset(self) -> dict[str, float]:
        """Rates since the last call: images_per_second (over all ranks),
        step_time_ms, data_wait_share (of 1, this rank), memory_gib (peak of this process), and on
        a GPU device_memory_gib (in use by all: torch, DALI, NCCL, CUDA's contexts)."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        result = {
            "images_per_second": self._steps * self._global_batch_size / elapsed,
            "step_time_ms": 1e3 * elapsed / max(self._steps, 1),
            "data_wait_share": min(1.0, self._waited / elapsed),
            "memory_gib": peak_memory_gib(self._device),
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            result["device_memory_gib"] = (total - free) / 2**30
        self._start, self._waited, self._steps = now, 0.0, 0
        return result


def peak_memory_gib(device: torch.device) -> float:
    """The most that this process has held: of a GPU's memory by torch, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB

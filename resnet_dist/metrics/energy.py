"""Energy that processors and GPUs say they used: RAPL's and NVML's counters.

Linux counts the energy of processor packages below /sys/class/powercap (readable by root alone, and
not there in most virtual machines); NVML that of a GPU since the driver was loaded (Volta and
later). What has no counter is not in the sum: memory, fans, other machines' parts.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from resnet_dist.world import World, sync_sum_

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Energy of this rank's GPU, and on a machine's first rank that of its processors."""

    def __init__(self, world: World, powercap: Path = POWERCAP) -> None:
        self._world = world
        self._counters: list[_Counter] = []
        if world.local_rank == 0:
            self._counters += _packages(powercap)
        if world.device.type == "cuda" and (gpu := _gpu(world.device)) is not None:
            self._counters.append(gpu)

    def sync_read_kj(self) -> dict[str, float]:
        """`energy_kj` over all ranks since the last call, or since construction; nothing where no
        rank has a counter. All ranks must call it."""
        joules = sum(counter.read() for counter in self._counters)
        own = torch.tensor([joules, float(len(self._counters))], dtype=torch.float64)
        total, counters = sync_sum_(own, self._world).tolist()
        return {"energy_kj": total / 1e3} if counters else {}


class _Counter:
    """A counter that rises and may begin again at its range."""

    def __init__(self, joules: Callable[[], float], wraps_at: float | None = None) -> None:
        self._joules, self._range = joules, wraps_at
        self._last = joules()

    def read(self) -> float:
        """Joules since the last call."""
        try:
            now = self._joules()
        except (OSError, ValueError):  # counters come and go with drivers and rights
            return 0.0
        used = now - self._last
        if used < 0:
            used += self._range or -used
        self._last = now
        return used


def _packages(powercap: Path) -> list[_Counter]:
    """One counter per processor package; parts of a package are in it already."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        with contextlib.suppress(OSError, ValueError):
            wraps_at = int((zone / "max_energy_range_uj").read_text()) / 1e6
            found.append(_Counter(_microjoules(zone / "energy_uj"), wraps_at))
    return found


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _gpu(device: torch.device) -> _Counter | None:
    """The counter of a GPU; None where there is none."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
    except (OSError, AttributeError):
        return None

    def joules() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    first = ctypes.c_ulonglong()
    if failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(first)):
        return None
    return _Counter(joules)

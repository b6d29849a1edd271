"""A trace of chosen steps, and where their time went, in words."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from resnet_dist.config import ProfileConfig
from resnet_dist.world import World

FOLDER = "profile"

FAMILIES = {
    "convolution": ("conv", "cudnn", "wgrad", "dgrad", "winograd", "implicit_gemm", "xmma"),
    "batch norm": ("batch_norm", "batchnorm", "moments"),
    "communication": ("nccl", "gloo", "c10d", "all_reduce", "allreduce", "broadcast_"),
    "optimizer": ("optimizer", "_foreach", "multi_tensor", "fused_sgd", "fused_adam"),
    "linear": ("addmm", "gemm", "aten::mm", "linear"),
    "pooling": ("pool",),
    "ReLU and additions": ("relu", "threshold", "aten::add", "add_", "elementwise"),
    "copies and casts": ("copy", "memcpy", "memset", "aten::to", "fill_", "zero_"),
}
"""Part of an operator's or kernel's name -> what it belongs to; the first that fits counts."""
_ROWS = 12


class Profiler:
    """Starts and stops torch's profiler by the number of the step."""

    def __init__(
        self,
        config: ProfileConfig,
        run_folder: Path,
        world: World,
        tell: Callable[[str], object],
    ) -> None:
        """`tell` is given the table of a trace."""
        self._tell = tell
        self._steps = config.steps if world.rank in config.ranks else None
        self._folder = run_folder / FOLDER
        self._world = world
        self._running: Any = None

    def begin_step(self, step: int) -> None:
        """Called before every step."""
        if self._steps is None:
            return
        if self._running is None and self._steps[0] <= step < self._steps[1]:
            self._start()
        elif self._running is not None and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """End a trace that runs, also in the middle."""
        if self._running is None:
            return
        profile, self._running = self._running, None
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        profile.stop()
        try:
            self._tell(self._write(profile))
        except OSError as error:  # a full disk must not end the training
            self._tell(f"warning: the profile cannot be written ({error.strerror or error})")

    def _start(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        self._running = torch_profile(self._world.device)
        self._running.start()

    def _write(self, profile: Any) -> str:
        assert self._steps is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"rank_{self._world.rank}.steps_{self._steps[0]}_{self._steps[1]}"
        trace = self._folder / f"{name}.pt.trace.json"
        profile.export_chrome_trace(str(trace))
        with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb", compresslevel=4) as packed:
            shutil.copyfileobj(plain, packed)
        trace.unlink()
        if self._world.device.type == "cuda":
            with contextlib.suppress(RuntimeError):
                path = str(self._folder / f"{name}.memory.pickle")
                torch.cuda.memory._dump_snapshot(path)  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        table = self._folder / f"{name}.txt"
        lines = where_time_went(profile.key_averages(), on_gpu=self._world.device.type == "cuda")
        table.write_text("\n".join(lines) + "\n")
        return "\n".join([*lines, f"table: {table}", f"trace, for Perfetto: {trace}.gz"])


def torch_profile(device: torch.device) -> Any:
    """torch's profiler for a device, not started."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when it is first used
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, record_shapes=True)


def family_of(name: str) -> str:
    """What an operator or kernel belongs to."""
    lowered = name.lower()
    for family, parts in FAMILIES.items():
        if any(part in lowered for part in parts):
            return family
    return "other"


def by_family(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Milliseconds of operators by what they belong to. `events`: torch's averages by name."""
    return _grouped(_times(events, on_gpu=on_gpu))


def _times(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Milliseconds of each operator or kernel by itself."""
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: float(getattr(event, field)) / 1e3 for event in events}
    return {name: time for name, time in times.items() if time > 0}


def _grouped(times: Mapping[str, float]) -> dict[str, float]:
    families: dict[str, float] = {}
    for name, time in times.items():
        families[family_of(name)] = families.get(family_of(name), 0.0) + time
    return families


def where_time_went(events: Iterable[Any], *, on_gpu: bool) -> list[str]:
    """Shares of the time in operators by family, then the longest operators. `events`: torch's
    averages by name."""
    times = _times(events, on_gpu=on_gpu)
    total = sum(times.values()) or 1.0
    families = _grouped(times)
    where = "GPU" if on_gpu else "CPU"
    lines = [f"where the traced steps went ({total:.1f} ms in operators on the {where}):"]
    for family, time in sorted(families.items(), key=lambda each: -each[1]):
        lines.append(f"  {family:<20}{time / total:>7.1%}{time:>11.1f} ms")
    lines.append("longest operators:")
    for name, time in sorted(times.items(), key=lambda each: -each[1])[:_ROWS]:
        lines.append(f"  {name[:52]:<52}{time / total:>7.1%}{time:>11.1f} ms")
    return lines

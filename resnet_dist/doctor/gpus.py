"""Checks of the GPUs of one machine, by nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess

from resnet_dist.doctor.finding import Finding, ok, warn
from resnet_dist.world import World

FIELDS = (
    "index",
    "uuid",
    "name",
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "memory.used",
)
_HOT = 85
_BUSY_MIB = 2048


def gpu_findings(world: World) -> list[Finding]:
    """One entry per GPU. Nothing on a CPU."""
    if world.device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [warn("GPUs", f"nvidia-smi fails ({error})", "look at the driver")]
    return [judge(line) for line in printed.stdout.splitlines() if line.strip()]


def judge(line: str) -> Finding:
    """What nvidia-smi says about a GPU, in `FIELDS`."""
    values = dict(zip(FIELDS, (each.strip() for each in line.split(",")), strict=False))
    number, uuid, name = (values.get(key, "?") for key in FIELDS[:3])
    check = f"GPU {number}"
    what = (
        f"{name}, {uuid}, {values.get('clocks.sm')} of {values.get('clocks.max.sm')} MHz, "
        f"{values.get('temperature.gpu')} C"
    )
    errors = _number(values.get("ecc.errors.uncorrected.volatile.total"))
    if errors:
        remedy = "reset or replace the GPU; leave the host out until then"
        return warn(check, f"{what}: {errors} uncorrected memory errors", remedy)
    if _number(values.get("temperature.gpu")) >= _HOT:
        return warn(check, f"{what}: hot", "look at its cooling: it will slow down")
    used = _number(values.get("memory.used"))
    if used > _BUSY_MIB:
        remedy = "end what uses it (nvidia-smi lists processes)"
        return warn(check, f"{what}: {used} MiB are in use already", remedy)
    return ok(check, what)


def _number(text: str | None) -> int:
    """A count; 0 where the GPU does not say."""
    return int(text) if text is not None and text.isdecimal() else 0

"""Which package of NVIDIA DALI is installed, and which would suit: there is one per CUDA major."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util

PACKAGES = {13: "nvidia-dali-cuda130", 12: "nvidia-dali-cuda120"}
"""By the CUDA major that they are built for."""


def installed() -> tuple[int, str] | None:
    """CUDA major and version of DALI here; None if there is none. One of another origin (conda, a
    nightly build, a folder) counts as of CUDA 0: what it needs is not known."""
    for major, package in PACKAGES.items():
        try:
            return major, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return (0, "of another origin") if _is_importable() else None


def _is_importable() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package above it
        return False


def version() -> str:
    """For records: "cuda13 2.4.0", or "not installed"."""
    found = installed()
    return "not installed" if found is None else f"cuda{found[0]} {found[1]}"


def driver_version() -> int | None:
    """The newest CUDA that this machine's driver runs, as 13020 for 13.2; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def suited_to(driver: int | None, torch_cuda: str | None) -> int:
    """The CUDA major to install: the newest that the driver runs, else torch's own, else 13.

    `driver`: newest CUDA that it runs, as 13020 for 13.2; None: not known. `torch_cuda`: as
    `torch.version.cuda`.
    """
    if driver is not None:
        return 13 if driver >= 13000 else 12
    major = (torch_cuda or "").partition(".")[0]
    return int(major) if major in ("12", "13") else 13


def how_to_install(major: int) -> str:
    """The command."""
    return f"pip install 'resnet_dist[dali-cuda{major}]' ({PACKAGES[major]})"


def conflict(driver: int | None, torch_cuda: str | None) -> str | None:
    """Why DALI cannot run here, with the remedy; None if it can, as far as versions say."""
    found, suited = installed(), suited_to(driver, torch_cuda)
    if found is None:
        return f"NVIDIA DALI is not installed; {how_to_install(suited)}"
    if driver is None or driver >= found[0] * 1000:
        return None
    limit = f"{driver // 1000}.{driver % 1000 // 10}"
    return (
        f"{PACKAGES[found[0]]} needs a driver for CUDA {found[0]}, and this one runs CUDA "
        f"{limit} at most; pip uninstall {PACKAGES[found[0]]}, then {how_to_install(suited)}"
    )

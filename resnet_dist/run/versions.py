"""What a result depends on besides settings and data: packages and the revision of the code."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from resnet_dist.run import dali_package

REVISION_FILE = "revision.txt"
"""File in a copy of this package with the git revision that it was copied from."""

_PACKAGES = ("torch", "torchvision", "numpy", "omegaconf", "resnet_dist")


DALI = "nvidia-dali"


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found[DALI] = dali_package.version()
    return found


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that compute, and the source tree's revision if there is one."""
    return {**package_versions(), "git": _git_revision()}


def _git_revision() -> str:
    package = Path(__file__).parents[1]
    if (package / REVISION_FILE).exists():
        return (package / REVISION_FILE).read_text().strip()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

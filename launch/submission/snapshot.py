"""A copy of the code beside the run, so that a requeue months later runs what was submitted."""

from __future__ import annotations

import shutil
from pathlib import Path

import launch
import resnet_dist
from resnet_dist.run.folder import REVISION_FILE, versions

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def copy_code(folder: Path) -> None:
    """Copy both packages, with the shipped configs, below `folder`, which is put on PYTHONPATH."""
    for package in (resnet_dist, launch):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=_LEFT_OUT)
    # The copy may lie in another repository, and is none itself.
    (folder / "resnet_dist" / REVISION_FILE).write_text(f"{versions()['git']}\n")

"""The copy of the code that a job runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launch.submission.snapshot import copy_code
from resnet_dist.config.load import shipped_configs
from resnet_dist.run.folder import versions


def test_the_copy_of_the_code_stands_on_its_own(tmp_path: Path) -> None:
    code = tmp_path / "code"
    copy_code(code)
    assert list(code.rglob("*.pyc")) == []
    script = (
        "import launch, resnet_dist, launch.node.requeue\n"
        "from launch.cluster.option_sources import cluster_files\n"
        "from resnet_dist.config.load import shipped_configs\n"
        "from resnet_dist.run.folder import versions\n"
        "files = [*shipped_configs().values(), *cluster_files().values()]\n"
        "print(launch.__file__, resnet_dist.__file__, versions()['git'], *files, sep='\\n')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    mine, trainer, revision, *files = ended.stdout.splitlines()
    assert mine == str(code / "launch/__init__.py")
    assert trainer == str(code / "resnet_dist/__init__.py")
    assert revision == versions()["git"]
    names = {Path(name).relative_to(code / "resnet_dist/configs").as_posix() for name in files}
    assert {"quickstart.yaml", "cluster/gpu8.yaml"} <= names
    assert len(names) == len(shipped_configs()) + len(list(code.glob("**/cluster/*.yaml")))

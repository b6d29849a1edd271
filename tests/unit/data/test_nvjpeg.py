"""Which nvJPEG DALI will find, and what is said if that one is too old."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resnet_dist.data import nvjpeg


def test_the_one_that_came_with_dali_is_loaded_before_torchvision() -> None:
    """Whoever asks for it by name gets that one."""
    code = (
        "import resnet_dist.data, sys\n"
        "assert 'torchvision' not in sys.modules\n"
        "import torchvision.io\n"
        "maps = open('/proc/self/maps').read().splitlines()\n"
        "print(sorted({line.split()[-1] for line in maps if 'libnvjpeg.so' in line}))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    if "nvidia" not in found.stdout:
        pytest.skip("nvJPEG is not installed")
    version = nvjpeg.load_nvjpeg()
    assert version is not None
    assert version >= nvjpeg.NEEDED
    assert nvjpeg.fallback_note() is None


@pytest.mark.parametrize(
    ("version", "words"), [((13, 0), "13.0 is loaded"), (None, "none was found")]
)
def test_an_older_one_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, words: str
) -> None:
    monkeypatch.setattr(nvjpeg, "load_nvjpeg", lambda: version)
    note = nvjpeg.fallback_note()
    assert note is not None
    assert words in note
    assert "pip install" in note

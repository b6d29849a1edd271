"""Which DALI suits a driver."""

from __future__ import annotations

import importlib.metadata

import pytest

from resnet_dist.run import dali_package


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these packages are installed, by the end of their names."""

    def version(package: str) -> str:
        number = versions.get(package.rpartition("-")[2])
        if number is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return number

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(dali_package, "_is_importable", lambda: False)


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "major"),
    [
        (13020, "13.0", 13),
        (12080, "13.0", 12),  # the driver decides
        (None, "12.8", 12),
        (None, "13.0", 13),
        (None, None, 13),
    ],
)
def test_the_driver_decides_then_torch(
    driver: int | None, torch_cuda: str | None, major: int
) -> None:
    assert dali_package.suited_to(driver, torch_cuda) == major


def test_none_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert dali_package.version() == "not installed"
    problem = dali_package.conflict(12080, "12.8")
    assert problem is not None
    assert "pip install 'resnet_dist[dali-cuda12]' (nvidia-dali-cuda120)" in problem


def test_one_for_a_newer_driver_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, cuda130="2.4.0")
    assert dali_package.version() == "cuda13 2.4.0"
    assert dali_package.conflict(13000, "13.0") is None
    assert dali_package.conflict(None, "13.0") is None
    problem = dali_package.conflict(12080, "12.8")
    assert problem is not None
    assert "needs a driver for CUDA 13, and this one runs CUDA 12.8 at most" in problem
    assert "resnet_dist[dali-cuda12]" in problem


def test_one_for_an_older_cuda_runs_on_a_newer_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, cuda120="2.4.0")
    assert dali_package.conflict(13020, "13.0") is None


def test_one_of_another_origin_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As conda's, a nightly build, or a folder on PYTHONPATH."""
    installed(monkeypatch)
    monkeypatch.setattr(dali_package, "_is_importable", lambda: True)
    assert dali_package.conflict(12080, "12.8") is None
    assert dali_package.version() == "cuda0 of another origin"


def test_a_machine_without_a_driver_has_none() -> None:
    version = dali_package.driver_version()
    assert version is None or version >= 11000

"""Which GPUs are a task's, for each way in which clusters count them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cluster.options import ClusterConfig
from launch.node import gpus as module
from launch.node.gpus import Gpu, assign, can_be_listed, installed_gpus
from launch.node.torchrun import worker_environment
from resnet_dist.errors import UserError


def gpus(*numbers: int) -> list[Gpu]:
    """GPUs of a node by their numbers there, as a task sees them."""
    return [Gpu(f"GPU-{number}{number}-aaaa", "H100") for number in numbers]


@pytest.mark.parametrize(
    ("there", "visible", "wanted", "value", "mine"),
    [
        # All GPUs visible, the variable picks.
        (gpus(0, 1, 2, 3), "2,3", 2, "2,3", gpus(2, 3)),
        (gpus(0, 1, 2, 3), "3, 1", 2, "3,1", gpus(3, 1)),
        # cgroups: ours only, counted from 0 by everyone.
        (gpus(2, 3), "0,1", 2, "0,1", gpus(2, 3)),
        # Containers: ours only, but the variable has the node's numbers.
        (gpus(2, 3), "2,3", 2, "0,1", gpus(2, 3)),
        (gpus(1, 2), "1,2", 2, "0,1", gpus(1, 2)),
        (gpus(7), "7", 1, "0", gpus(7)),
        # No variable: all are ours; more than asked for.
        (gpus(0, 1), None, 2, "0,1", gpus(0, 1)),
        (gpus(0, 1, 2), None, 2, "0,1", gpus(0, 1)),
        (gpus(0, 1, 2), "2,1,0", 1, "2", gpus(2)),
        # Names, also shortened ones.
        (gpus(0, 1, 2), "GPU-22-aaaa,GPU-0", 2, "GPU-22-aaaa,GPU-0", gpus(2, 0)),
    ],
)
def test_assign(
    there: list[Gpu], visible: str | None, wanted: int, value: str, mine: list[Gpu]
) -> None:
    assert assign(there, visible, wanted) == (value, [gpu.uuid for gpu in mine])


def test_mig_devices_are_not_in_the_drivers_list() -> None:
    visible = "MIG-1/2/0,MIG-1/3/0"
    assert assign(gpus(0), visible, 2) == (visible, visible.split(","))


@pytest.mark.parametrize(
    ("there", "visible", "wanted", "words"),
    [
        (gpus(0, 1), None, 4, "4 GPUs were asked for, but 2 are there"),
        (gpus(0, 1, 2, 3), "0,1", 3, r"3 GPUs .* 2 are there \(CUDA_VISIBLE_DEVICES=0,1, the driv"),
        (gpus(0, 1), "", 1, "1 GPUs were asked for, but 0 are there"),
        ([], None, 1, "0 are there"),
        (gpus(0, 1), "1,1", 2, "names a GPU twice"),
        (gpus(0, 1), "GPU-0,GPU-00-aaaa", 2, "names a GPU twice"),
        (gpus(0, 1), "MIG-1,MIG-1", 2, "names a GPU twice"),
        (gpus(0, 1, 2), "2,3", 2, r"2,3 names GPUs that the driver does not show \(3 GPUs\)"),
        (gpus(0, 1), "GPU-99,GPU-0", 2, "GPU-99.* does not show"),
    ],
)
def test_what_cannot_be_assigned(
    there: list[Gpu], visible: str | None, wanted: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        assign(there, visible, wanted)


def test_the_driver_is_asked(mock_smi: Path) -> None:
    mock_smi.write_text("#!/bin/sh\necho 'GPU-1, NVIDIA H100 80GB'\necho 'GPU-2, NVIDIA H100'\n")
    assert installed_gpus() == [Gpu("GPU-1", "NVIDIA H100 80GB"), Gpu("GPU-2", "NVIDIA H100")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Driver/library version mismatch'; exit 18", "failed: Driver/library version mis"),
        ("echo '[Unknown Error], H100'", r"an unhealthy GPU: \[Unknown Error\]"),
        ("echo 'GPU-1'", "an unhealthy GPU: GPU-1"),
    ],
)
def test_an_unhealthy_driver(mock_smi: Path, body: str, words: str) -> None:
    mock_smi.write_text(f"#!/bin/sh\n{body}\n")
    with pytest.raises(UserError, match=words):
        installed_gpus()


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="neither nvidia-smi nor the GPU driver is found"):
        installed_gpus()


def test_a_container_with_the_driver_alone_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = tmp_path / "nvidiactl"
    monkeypatch.setattr(module, "DRIVER", driver)
    assert can_be_listed()  # and then says that there is neither
    driver.touch()
    assert not can_be_listed()
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert can_be_listed()


def test_the_workers_count_gpus_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    given = {"job": "j", "code": "/c"}
    environment = worker_environment(ClusterConfig(), **given, visible_devices="0,1")
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in worker_environment(
        ClusterConfig(), **given, visible_devices=None
    )

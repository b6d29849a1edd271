"""What NCCL is told to leave behind when a collective hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from resnet_dist.config import DistConfig
from resnet_dist.world import prepare_nccl, start_process_group

NCCL = (
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's environment for one test, without variables of NCCL."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in NCCL:
        os.environ.pop(name, None)
    return os.environ  # type: ignore[return-value]


def test_nccl_writes_its_last_collectives_into_the_run_folder(
    environment: dict[str, str], tmp_path: Path
) -> None:
    prepare_nccl(DistConfig(timeout_s=90.5, flight_recorder_entries=7), tmp_path / "run")
    folder = tmp_path / "run" / "flight_recorder"
    assert folder.is_dir()
    assert [environment[name] for name in NCCL] == ["91", "7", "1", f"{folder}/rank_"]


def test_the_flight_recorder_can_be_off_and_the_users_variables_stay(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] = "33"
    prepare_nccl(DistConfig(flight_recorder_entries=0), tmp_path)
    assert [environment.get(name) for name in NCCL] == ["33", "0", "0", None]
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_writes_no_record(environment: dict[str, str]) -> None:
    prepare_nccl(DistConfig(), None)
    assert environment["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"


def test_a_cpu_run_sets_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    start_process_group(DistConfig(), tmp_path)
    assert [name for name in NCCL if name in environment] == []

"""Energy from RAPL's files (imitated: virtual machines have none), and never a reason to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_dist.metrics.energy import EnergyMeter
from resnet_dist.world import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def write_zone(powercap: Path, name: str, microjoules: int) -> Path:
    zone = powercap / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    files = [write_zone(tmp_path, f"intel-rapl:{number}", 5_000_000) for number in (0, 1)]
    part = write_zone(tmp_path, "intel-rapl:0:0", 0)
    meter = EnergyMeter(WORLD, tmp_path)
    for path in files:
        path.write_text("7000000\n")
    part.write_text("2000000\n")
    assert meter.sync_read_kj() == {"energy_kj": pytest.approx(0.004)}
    assert meter.sync_read_kj() == {"energy_kj": 0.0}


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    path = write_zone(tmp_path, "intel-rapl:0", 999_000_000)
    meter = EnergyMeter(WORLD, tmp_path)
    path.write_text("1000000\n")
    assert meter.sync_read_kj()["energy_kj"] == pytest.approx(0.002)


def test_no_counter_is_no_record_and_a_lost_one_no_error(tmp_path: Path) -> None:
    assert EnergyMeter(WORLD, tmp_path / "none").sync_read_kj() == {}
    path = write_zone(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(WORLD, tmp_path)
    path.unlink()
    assert meter.sync_read_kj() == {"energy_kj": 0.0}


def test_only_the_first_rank_of_a_machine_counts_its_processors(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", 1)
    second = World(0, 1, 1, 2, torch.device("cpu"))
    assert EnergyMeter(second, tmp_path).sync_read_kj() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_computes_uses_energy() -> None:
    meter = EnergyMeter(World(0, 1, 1, 2, torch.device("cuda", 0)))
    matrix = torch.ones(4096, 4096, device="cuda")
    for _ in range(200):
        matrix = matrix @ matrix * 1e-4
    torch.cuda.synchronize()
    assert meter.sync_read_kj()["energy_kj"] > 0

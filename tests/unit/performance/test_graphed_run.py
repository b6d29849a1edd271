"""Whole runs through the entry point with the mock of CUDA graphs: the loop around captured steps
logs, averages, evaluates, saves and resumes as it does around eager ones, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnet_dist import train
from resnet_dist.performance import build
from tests.launch import TINY, assert_same_run, newest_checkpoint
from tests.unit.performance.recorded_graph import RecordedGraphs

SETTINGS = [
    *TINY,
    "train.ema_decay=0.9",
    "augment.progressive_start_size=16",
    "augment.progressive_epochs=[1,3]",
    "augment.progressive_multiple=8",
    "log.every_steps=3",
    "log.tensorboard=false",
    "checkpoint.every_steps=2",
    "data.num_workers=1",
    "performance.num_threads=1",
]


class MockedGraphs(RecordedGraphs):
    """Made as `CudaGraphs` is."""

    made: list[MockedGraphs]

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"
        super().__init__()
        self.made.append(self)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """A CPU has none."""
        yield


@pytest.fixture(autouse=True)
def mocked(monkeypatch: pytest.MonkeyPatch) -> None:
    MockedGraphs.made = []
    monkeypatch.setattr(build, "CudaGraphs", MockedGraphs)
    monkeypatch.setattr(build, "check_device", lambda *_: None)


@pytest.mark.parametrize(
    "recipe",
    [
        [],
        pytest.param(
            ["optim.name=adam", "schedule.name=one_cycle", "schedule.warmup_epochs=0"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sgd", "one_cycle"],
)
def test_a_captured_run_is_the_eager_one(recipe: list[str], run_root: Path, tmp_path: Path) -> None:
    """Uninterrupted, and stopped twice: it goes on eagerly from a captured part, and the
    reverse."""

    def run(name: str, *overrides: str) -> Path:
        place = [f"data.root={run_root}", f"run.dir={tmp_path / name}"]
        assert train.main([*SETTINGS, *recipe, *place, *overrides]) == 0
        return tmp_path / name

    eager = run("eager")
    captured = run("captured", "performance.cuda_graph=true")
    (graphs,) = MockedGraphs.made
    assert graphs.num_captured == 2  # one a size of image
    assert graphs.num_replayed == 20 - 2 * 3
    assert_same_run(eager, captured)
    groups = newest_checkpoint(captured)["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float for group in groups)

    run("mixed", "performance.cuda_graph=true", "train.max_steps=7")
    run("mixed", "train.max_steps=10")
    assert_same_run(eager, run("mixed", "performance.cuda_graph=true"))


def test_a_captured_run_goes_back_when_it_diverges(
    run_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is loaded then gives the optimizer other tensors than were captured."""
    monkeypatch.setenv("RESNET_DIST_FAILPOINT", "step.loss@7-9=damage")
    for name in ("eager", "captured"):
        place = [f"data.root={run_root}", f"run.dir={tmp_path / name}"]
        graph = f"performance.cuda_graph={str(name == 'captured').lower()}"
        monkeypatch.setattr("resnet_dist.system.failpoints._passed", Counter())
        assert train.main([*SETTINGS, *place, graph, "faults.max_skipped_steps=3"]) == 0
        assert "going back to" in "".join(capsys.readouterr())
    assert_same_run(tmp_path / "eager", tmp_path / "captured")

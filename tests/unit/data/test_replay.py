"""Each sample at most once an epoch and each validation sample exactly once, whatever the ranks
and restarts; and that `inspect` says so, or says that it is not so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.replay import Counts, Start, replay_epoch, replay_evaluation
from resnet_dist.inspect.__main__ import main as inspect
from resnet_dist.prepare.__main__ import main as prepare
from tests.loading import change, train_spec
from tests.unit.data.test_order import make_table

Inspect = Callable[..., tuple[int, str]]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[Start]]:
    """Samples, epoch, and starts of one run at random steps with random numbers of ranks."""
    batch = draw(st.integers(1, 40))
    num_samples = draw(st.integers(batch, 400))
    epoch = draw(st.integers(0, 3))
    last = (epoch + 1) * (num_samples // batch)
    steps = draw(st.sets(st.integers(1, max(1, last)), max_size=5))
    starts = []
    for step in sorted({0} | steps):
        world = draw(st.integers(1, min(batch, 9)))
        num_micro_batches = draw(st.integers(1, max(1, batch // world)))
        starts.append(Start(step, BatchSplit(batch, world, num_micro_batches)))
    return num_samples, epoch, starts


@settings(deadline=None, max_examples=150)
@given(runs(), st.integers(0, 2**63 - 1))
def test_training_uses_a_sample_once_an_epoch(run: tuple[int, int, list[Start]], seed: int) -> None:
    num_samples, epoch, starts = run
    batch = starts[0].batch_split.global_batch_size
    counts = replay_epoch(SampleOrder(num_samples, batch, seed=seed), epoch, starts)
    dropped = num_samples % batch
    assert counts == Counts(dropped, num_samples - dropped, 0, num_samples - dropped, 1)
    assert dropped < batch


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))
def test_evaluation_uses_every_sample_once(num_samples: int, batch: int, world: int) -> None:
    counts = replay_evaluation(num_samples, batch_size=batch, world_size=world)
    assert counts == Counts(0, num_samples, 0, num_samples, 1)


@settings(deadline=None, max_examples=40)
@given(runs())
def test_the_replay_is_what_the_loaders_are_given(run: tuple[int, int, list[Start]]) -> None:
    """The specs of the whole epoch, of all ranks, hold the samples that were counted."""
    num_samples, epoch, starts = run
    batch = starts[0].batch_split.global_batch_size
    table = make_table(num_samples)
    steps = num_samples // batch
    seen: list[int] = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch_split = [start.batch_split for start in starts if start.step <= step][-1]
        for micro_batch in range(batch_split.accumulation_steps):
            for rank in range(batch_split.world_size):
                spec = train_spec(
                    change(),
                    table,
                    batch_split,
                    rank=rank,
                    step=step,
                    micro_batch=micro_batch,
                    seed=1,
                )
                seen += spec.sample_ids.tolist()
    used = np.bincount(seen, minlength=num_samples)
    counts = replay_epoch(SampleOrder(num_samples, batch, seed=1), epoch, starts)
    assert (counts.once, counts.never) == ((used == 1).sum(), (used == 0).sum())
    assert used.max() == 1


def test_the_dropped_tail_is_another_one_each_epoch() -> None:
    order = SampleOrder(25, 8, seed=0)
    used = [
        set(np.concatenate([order.sample_ids(epoch * 3 + i) for i in range(3)]))
        for epoch in range(40)
    ]
    assert len(set.intersection(*used)) < 24
    assert len(set.union(*used)) == 25


def test_a_loss_or_a_repetition_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof can fail: an order that repeats a sample, a slice that leaves one out."""
    starts = [Start(0, BatchSplit(8, 2, 1))]
    order, real = SampleOrder(32, 8, seed=0), SampleOrder.sample_ids

    def repeated(self: SampleOrder, step: int) -> NDArray[np.int64]:
        ids = real(self, step)
        return np.append(ids[:-1], ids[0])

    monkeypatch.setattr(SampleOrder, "sample_ids", repeated)
    counts = replay_epoch(order, 0, starts)
    assert (counts.never, counts.more) == (4, 4)
    monkeypatch.undo()
    monkeypatch.setattr(BatchSplit, "micro_batch_slice", lambda *_: (0, 4))
    assert replay_epoch(order, 0, starts).more == 16


@pytest.fixture
def look(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Inspect:
    """Calls `inspect`: (exit code, what it said)."""
    monkeypatch.setenv("RESNET_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        code = inspect(arguments)
        said = capsys.readouterr()
        return code, said.err if code == 2 else said.out

    return call


def test_inspect_a_folder_and_its_shards(image_root: Path, tmp_path: Path, look: Inspect) -> None:
    assert prepare(["folder", str(image_root), f"--out={tmp_path / 'out'}"]) == 0
    code, of_folder = look(str(image_root), "data.train_size=40")
    assert code == 0
    assert "27 images of 3 classes in files" in of_folder
    assert "images per class: 9 to 9, median 9" in of_folder
    assert "shorter side, pixels: 33 to 90" in of_folder
    assert "global batch 27, ranks: 8 from step 0" in of_folder
    assert "training, epoch 0: 27 samples once, 0 more than once, 0 not" in of_folder
    with Image.open(tmp_path / "inspect.png") as image:
        assert image.size == (6 * 42 - 2, 5 * 42 - 2)
    code, of_shards = look(str(tmp_path / "out"), "data.train_size=40", "--grid=other.png")
    assert code == 0
    assert "27 images of 3 classes in 1 shard(s)" in of_shards
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "inspect.png").read_bytes()


def test_inspect_a_config_with_restarts(image_root: Path, look: Inspect) -> None:
    base = ["quickstart", f"data.root={image_root}", "train.global_batch_size=4"]
    code, said = look(*base, "--start", "4:1", "--start", "0:4", "--start=9:3", "--epochs=2")
    assert code == 0
    assert "ranks: 4 from step 0, 1 from step 4, 3 from step 9" in said
    assert said.count("24 samples once, 0 more than once, 3 not") == 2
    for ranks in (1, 3, 4):
        assert f"validation on {ranks} rank(s): 12 samples once, 0 more than once, 0 not" in said
    code, said = look(*base[:2], "train.global_batch_size=9", "augment.ra_reps=3")
    assert code == 0
    assert "0 samples once, 9 more than once, 18 not (augment.ra_reps=3)" in said
    for wrong, part in (
        (["--start=3:2"], "no start at step 0"),
        (["--start=0:5"], "smaller than the 5 ranks"),
        (["data.rot=1"], "unknown key"),
        (["--grid=/proc/none.png"], "--grid (/proc/none.png): cannot be written"),
    ):
        code, said = look(*base, *wrong)
        assert code == 2
        assert part in said


def test_inspect_says_when_something_is_wrong(
    image_root: Path, look: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSplit, "micro_batch_slice", lambda *_: (0, 2))
    code, said = look("quickstart", f"data.root={image_root}", "train.global_batch_size=4")
    assert code == 1
    assert "THIS IS WRONG" in said

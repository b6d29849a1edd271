"""The loader that holds decoded images: batches of the torch loader bit for bit, or a refusal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.config import AugmentConfig, Config, DataConfig
from resnet_dist.data.augment import pixel_ops
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch, Done, Operations
from resnet_dist.data.index.index import open_index
from resnet_dist.data.loaders import memory_backend
from resnet_dist.data.loaders.joining import join, part
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from tests.loading import CPU, assert_same_batch, change, eval_loader, open_split, train_spec
from tests.loading import train_batches as batches_of

SIDE = 24
WriteImage = Callable[..., None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_image: WriteImage) -> Path:
    """27 training and 14 validation images of one size, in every form."""
    folder = tmp_path_factory.mktemp("small")
    modes = ["RGB", "L", "CMYK", "RGB"]
    for split, count in (("train", 27), ("val", 14)):
        for i in range(count):
            suffix, mode = (".png", "P") if i % 5 == 4 else (".jpg", modes[i % 4])
            path = folder / split / "abc"[i % 3] / f"{i:03d}{suffix}"
            write_image(path, SIDE, SIDE, seed=i + 100 * len(split), mode=mode)
    return folder


@pytest.fixture
def config(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    data = DataConfig(
        root=str(root),
        cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        loader="memory",
        train_size=SIDE,
        eval_resize_size=SIDE,
        eval_size=SIDE,
    )
    return Config(data=data, augment=AugmentConfig(crop="pad_reflect"))


def train_batches(
    config: Config, split: BatchSplit, *, steps: tuple[int, int] = (0, 5), **kwargs: Any
) -> list[Batch]:
    return list(batches_of(config, open_split(config), split, steps, **kwargs))


def eval_batches(config: Config, **kwargs: Any) -> list[Batch]:
    return list(eval_loader(config, open_split(config, "val"), 4, **kwargs).batches())


def assert_equal(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert_same_batch(one, other)


MIX = {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_offset": {"crop_padding": 0, "flip_probability": 1.0},
    "no_flip": {"flip_probability": 0.0, "crop_padding": 9},
    "erase": {"erase_probability": 0.7},
    "mix": MIX,
    "mix_batch": {**MIX, "mix_mode": "batch", "mix_probability": 0.8},
    "ra": {"auto_augment": "ra"},
    "ta_wide": {"auto_augment": "ta_wide"},
    "imagenet": {"auto_augment": "imagenet"},
    "jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.2)},
    "ra_reps": {"ra_reps": 2},
    "colours": {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)},
    "all": {**MIX, "erase_probability": 0.5, "auto_augment": "ra", "ra_reps": 2}
    | {"color_jitter": (0.4, 0.4, 0.4, 0.2)},
}


@pytest.fixture(params=[1, 2, 64], ids="{}_at_once".format)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where several batches are made in one go."""
    monkeypatch.setattr(memory_backend, "batches_at_once", lambda *_, **__: request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_those_of_the_torch_loader(config: Config, recipe: str) -> None:
    """Uneven ranks and micro-batches, over two epochs of two steps, from any step."""
    config = change(config, **RECIPES[recipe])
    for batch_split, rank in ((BatchSplit(13, 1, 1), 0), (BatchSplit(11, 3, 2), 1)):
        expected = train_batches(change(config, loader="torch"), batch_split, rank=rank)
        assert len(expected) == 5 * batch_split.accumulation_steps
        assert_equal(train_batches(config, batch_split, rank=rank), expected)
        late = train_batches(config, batch_split, rank=rank, steps=(3, 5))
        assert_equal(late, expected[3 * batch_split.accumulation_steps :])
        assert not train_batches(config, batch_split, rank=rank, steps=(3, 3))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("size", [SIDE, 20, 17])
def test_evaluation_is_that_of_the_torch_loader(config: Config, size: int) -> None:
    config = change(config, eval_size=size)
    for rank in range(2):
        where = {"rank": rank, "world_size": 2}
        expected = eval_batches(change(config, loader="torch"), **where)
        assert len(expected) == 2
        assert_equal(eval_batches(config, **where), expected)


def test_filled_by_worker_processes(config: Config) -> None:
    batch_split = BatchSplit(9, 1, 1)
    expected = train_batches(change(config, loader="torch"), batch_split, num_workers=1)
    assert_equal(train_batches(config, batch_split, num_workers=2), expected)


def test_operations_are_done_by_one_thread(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a reader of the torch loader: threads share the sum of a large image."""
    threads = []
    apply_each = pixel_ops.apply_each

    def spy(images: torch.Tensor, operations: Operations) -> None:
        threads.append(torch.get_num_threads())
        apply_each(images, operations)

    monkeypatch.setattr(pixel_ops, "apply_each", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_batches(change(config, auto_augment="ra"), BatchSplit(9, 1, 1), steps=(0, 2))
        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_joined_specs_come_apart_again(draws: st.DataObject) -> None:
    class Table:
        labels = np.arange(60) % 7
        heights = np.full(60, 8, np.int32)
        widths = np.full(60, 8, np.int32)

        def __len__(self) -> int:
            return 60

    recipe = RECIPES[draws.draw(st.sampled_from(sorted(RECIPES)))]
    config = change(train_size=8, crop="pad_reflect", **{**recipe, "crop_padding": 2})
    world = draws.draw(st.integers(1, 4))
    batch_split = BatchSplit(
        draws.draw(st.integers(2 * world, 20)), world, draws.draw(st.integers(1, 2))
    )
    rank = draws.draw(st.integers(0, world - 1))
    specs = [
        train_spec(config, Table(), batch_split, rank=rank, step=step, micro_batch=micro_batch)
        for step in range(draws.draw(st.integers(1, 4)))
        for micro_batch in range(batch_split.accumulation_steps)
    ]
    whole = join(specs)
    pixels = torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8)
    stage = DeviceStage(config.data, CPU)
    apart = part(stage(pixels[whole.sample_ids], whole, Done.CROPPED), specs)
    assert_equal(apart, (stage(pixels[spec.sample_ids], spec, Done.CROPPED) for spec in specs))


def test_a_gpu_makes_several_batches_at_once() -> None:
    gpu = torch.device("cuda", 0)
    assert memory_backend.batches_at_once(gpu, batch_size=512, size=32) == 10
    assert memory_backend.batches_at_once(gpu, batch_size=1, size=32) == 64
    assert memory_backend.batches_at_once(gpu, batch_size=512, size=224) == 1
    assert memory_backend.batches_at_once(CPU, batch_size=512, size=32) == 1


def message_of(config: Config, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        train_batches(config, BatchSplit(9, 1, 1), **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("what", ["damaged", "longer", "gone"])
def test_a_bad_image_is_named_as_the_torch_loader_does(
    config: Config, root: Path, tmp_path: Path, what: str, num_workers: int
) -> None:
    config = change(config, root=str(shutil.copytree(root, tmp_path / "data")))
    open_split(config)
    victim = tmp_path / "data/train/b/001.jpg"
    content = victim.read_bytes()
    if what == "gone":
        folder = victim.parent.stat()
        victim.unlink()
        os.utime(victim.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    else:
        victim.write_bytes(content + b"\0" if what == "longer" else b"\0" * len(content))

    def read(config: Config) -> None:
        index = open_index(config.data, "train", build=False, show_progress=False)
        list(batches_of(config, index, BatchSplit(27, 1, 1), (0, 1), num_workers=num_workers))

    with pytest.raises(UserError) as theirs:
        read(change(config, loader="torch"))
    with pytest.raises(UserError) as ours:
        read(config)
    assert str(ours.value) == str(theirs.value)
    assert str(ours.value).startswith(f"data.root ({victim}): ")


def test_images_of_several_sizes_are_refused(config: Config, image_root: Path) -> None:
    message = message_of(change(config, root=str(image_root)))
    assert message.startswith("data.loader (memory): needs images that are squares of one size")
    assert "have sides of 33 to 130 pixels; set data.loader=auto" in message


def test_resizes_are_refused(config: Config) -> None:
    message = message_of(change(config, train_size=32))
    assert message.startswith("data.train_size (32): needs a resize")
    assert message.endswith("set data.train_size=24, or data.loader=auto")
    with pytest.raises(UserError, match=r"^data.eval_resize_size \(28\): needs .*_size=24, or"):
        eval_batches(change(config, eval_resize_size=28))
    with pytest.raises(UserError, match=r"^augment.crop \('random_resized'\): .*pad_reflect, or"):
        change(config, crop="random_resized")
    with pytest.raises(UserError, match=r"^augment.progressive_start_size \(16\): needs a resize"):
        change(config, progressive_start_size=16, progressive_epochs=(0, 2))


def test_what_does_not_fit_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_backend.decoded_bytes(open_split(config)) == 27 * SIDE * SIDE * 3
    message = message_of(change(config, memory_limit_gib=4e-5))
    assert message.startswith("data.memory_limit_gib (4e-05): the images of ")
    assert train_batches(change(config, memory_limit_gib=5e-5), BatchSplit(9, 1, 1))
    with pytest.raises(UserError, match=r"data.memory_limit_gib \(0.0\): must be positive"):
        change(config, memory_limit_gib=0.0)
    assert memory_backend._free_bytes(CPU) > 1 << 20
    monkeypatch.setattr(memory_backend, "_free_bytes", lambda _: 1000)
    assert "cpu has 0.00 GiB free; set data.loader=auto" in message_of(config)

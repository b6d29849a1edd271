"""The loader that holds decoded images: batches of the torch loader bit for bit, or a refusal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.config import DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment import pixel_ops
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Operations
from resnet_dist.data.loaders import build, memory_loader
from resnet_dist.data.loaders.build import Batch, Index, open_index
from resnet_dist.data.loaders.joining import join, part
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError

CPU = torch.device("cpu")
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
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(
        root=str(root),
        cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        loader="memory",
        train_size=SIDE,
        eval_resize_size=SIDE,
        eval_size=SIDE,
        crop="pad_reflect",
    )


def open_split(data: DataConfig, split: str = "train") -> Index:
    return open_index(data, split, build=True, show_progress=False)


def train_batches(
    data: DataConfig,
    batch_split: BatchSplit,
    *,
    rank: int = 0,
    steps: tuple[int, int] = (0, 5),
    num_workers: int = 0,
) -> list[Batch]:
    loader = build.build_train_loader(
        data,
        open_split(data),
        batch_split=batch_split,
        seed=7,
        rank=rank,
        device=CPU,
        num_workers=num_workers,
    )
    assert loader.name == data.loader
    return list(loader.batches(*steps))


def eval_batches(data: DataConfig, *, rank: int, world_size: int, **kwargs: Any) -> list[Batch]:
    loader = build.build_eval_loader(
        data,
        open_split(data, "val"),
        rank=rank,
        world_size=world_size,
        device=CPU,
        num_workers=0,
        **kwargs,
    )
    return list(loader.batches())


def assert_equal(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    """To the bit, and laid out alike."""
    for one, other in zip(left, right, strict=True):
        assert one.step == other.step
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        assert one.images.dtype == other.images.dtype
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.mixed is None) == (other.mixed is None)
        if one.mixed is not None and other.mixed is not None:
            assert torch.equal(one.mixed.partners, other.mixed.partners)
            assert torch.equal(one.mixed.shares, other.mixed.shares)


MIX = {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_shift": {"crop_padding": 0, "flip_probability": 1.0},
    "no_flip": {"flip_probability": 0.0, "crop_padding": 9},
    "erase": {"erase_probability": 0.7},
    "mix": MIX,
    "mix_batch": {**MIX, "mix_mode": "batch", "mix_probability": 0.8},
    "ra": {"auto_augment": "ra"},
    "ta_wide": {"auto_augment": "ta_wide"},
    "imagenet": {"auto_augment": "imagenet"},
    "jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.2)},
    "repeats": {"repeats": 2},
    "bfloat16": {"image_dtype": "bfloat16", "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)},
    "padded": {"image_dtype": "float16", "pad_channels": True, **MIX},
    "all": {**MIX, "erase_probability": 0.5, "auto_augment": "ra", "repeats": 2}
    | {"color_jitter": (0.4, 0.4, 0.4, 0.2)},
}


@pytest.fixture(params=[1, 2, 64], ids="{}_at_once".format)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where several batches are made in one go."""
    monkeypatch.setattr(memory_loader, "batches_at_once", lambda *_, **__: request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_those_of_the_torch_loader(data: DataConfig, recipe: str) -> None:
    """Uneven ranks and micro-batches, over two epochs of two steps, from any step."""
    data = replace(data, **RECIPES[recipe])
    for batch_split, rank in ((BatchSplit(13, 1, 1), 0), (BatchSplit(11, 3, 2), 1)):
        expected = train_batches(replace(data, loader="torch"), batch_split, rank=rank)
        assert len(expected) == 5 * batch_split.accumulation_steps
        assert_equal(train_batches(data, batch_split, rank=rank), expected)
        late = train_batches(data, batch_split, rank=rank, steps=(3, 5))
        assert_equal(late, expected[3 * batch_split.accumulation_steps :])
        assert not train_batches(data, batch_split, rank=rank, steps=(3, 3))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("size", "dtype"), [(SIDE, "float32"), (20, "bfloat16"), (17, "float16")])
def test_evaluation_is_that_of_the_torch_loader(data: DataConfig, size: int, dtype: Any) -> None:
    data = replace(data, eval_size=size, image_dtype=dtype)
    for rank in range(2):
        where = {"rank": rank, "world_size": 2, "batch_size": 4}
        expected = eval_batches(replace(data, loader="torch"), **where)
        assert len(expected) == 2
        assert_equal(eval_batches(data, **where), expected)


def test_filled_by_worker_processes(data: DataConfig) -> None:
    batch_split = BatchSplit(9, 1, 1)
    expected = train_batches(replace(data, loader="torch"), batch_split, num_workers=1)
    assert_equal(train_batches(data, batch_split, num_workers=2), expected)


def test_operations_are_done_by_one_thread(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        train_batches(replace(data, auto_augment="ra"), BatchSplit(9, 1, 1), steps=(0, 2))
        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_joined_jobs_come_apart_again(draws: st.DataObject) -> None:
    class Table:
        labels = np.arange(60) % 7
        heights = np.full(60, 8, np.int32)
        widths = np.full(60, 8, np.int32)

        def __len__(self) -> int:
            return 60

    recipe = RECIPES[draws.draw(st.sampled_from(sorted(RECIPES)))]
    data = DataConfig(train_size=8, crop="pad_reflect", **{**recipe, "crop_padding": 2})
    world = draws.draw(st.integers(1, 4))
    batch_split = BatchSplit(
        draws.draw(st.integers(2 * world, 20)), world, draws.draw(st.integers(1, 2))
    )
    rank = draws.draw(st.integers(0, world - 1))
    specs = [
        order.train_spec(
            data,
            Table(),
            batch_split=batch_split,
            seed=3,
            rank=rank,
            step=step,
            micro_batch=micro_batch,
        )
        for step in range(draws.draw(st.integers(1, 4)))
        for micro_batch in range(batch_split.accumulation_steps)
    ]
    whole = join(specs)
    pixels = torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8)
    stage = DeviceStage(data, CPU)
    apart = part(stage(pixels[whole.sample_ids], whole, is_flipped=False), specs)
    assert_equal(apart, (stage(pixels[spec.sample_ids], spec, is_flipped=False) for spec in specs))


def test_a_gpu_makes_several_batches_at_once() -> None:
    gpu = torch.device("cuda", 0)
    assert memory_loader.batches_at_once(gpu, batch_size=512, size=32) == 10
    assert memory_loader.batches_at_once(gpu, batch_size=1, size=32) == 64
    assert memory_loader.batches_at_once(gpu, batch_size=512, size=224) == 1
    assert memory_loader.batches_at_once(CPU, batch_size=512, size=32) == 1


def test_it_is_never_chosen_by_itself(data: DataConfig) -> None:
    assert build.choose_loader(data, CPU) == "memory"
    assert build.choose_loader(replace(data, loader="auto"), CPU) == "torch"


def message_of(data: DataConfig, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        train_batches(data, BatchSplit(9, 1, 1), **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("what", ["damaged", "longer", "gone"])
def test_a_bad_image_is_named_as_the_torch_loader_does(
    data: DataConfig, root: Path, tmp_path: Path, what: str, num_workers: int
) -> None:
    data = replace(data, root=str(shutil.copytree(root, tmp_path / "data")))
    open_split(data)
    victim = tmp_path / "data/train/b/001.jpg"
    content = victim.read_bytes()
    if what == "gone":
        folder = victim.parent.stat()
        victim.unlink()
        os.utime(victim.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    else:
        victim.write_bytes(content + b"\0" if what == "longer" else b"\0" * len(content))

    def read(data: DataConfig) -> None:
        loader = build.build_train_loader(
            data,
            open_index(data, "train", build=False, show_progress=False),
            batch_split=BatchSplit(27, 1, 1),
            seed=0,
            rank=0,
            device=CPU,
            num_workers=num_workers,
        )
        list(loader.batches(0, 1))

    with pytest.raises(UserError) as theirs:
        read(replace(data, loader="torch"))
    with pytest.raises(UserError) as ours:
        read(data)
    assert str(ours.value) == str(theirs.value)
    assert str(ours.value).startswith(f"data.root ({victim}): ")


def test_images_of_several_sizes_are_refused(data: DataConfig, image_root: Path) -> None:
    message = message_of(replace(data, root=str(image_root)))
    assert message.startswith("data.loader (memory): needs images that are squares of one size")
    assert "have sides of 33 to 130 pixels; set data.loader=auto" in message


def test_resizes_are_refused(data: DataConfig) -> None:
    message = message_of(replace(data, train_size=32))
    assert message.startswith("data.train_size (32): needs a resize")
    assert message.endswith("set data.train_size=24, or data.loader=auto")
    with pytest.raises(UserError, match=r"^data.eval_resize_size \(28\): needs .*_size=24, or"):
        eval_batches(replace(data, eval_resize_size=28), rank=0, world_size=1, batch_size=4)
    with pytest.raises(UserError, match=r"^data.crop \('random_resized'\): .*pad_reflect, or"):
        replace(data, crop="random_resized")
    with pytest.raises(UserError, match=r"^data.progressive_start_size \(16\): needs a resize"):
        replace(data, progressive_start_size=16, progressive_epochs=(0, 2))


def test_what_does_not_fit_is_refused(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_loader.decoded_bytes(open_split(data)) == 27 * SIDE * SIDE * 3
    message = message_of(replace(data, memory_limit_gib=4e-5))
    assert message.startswith("data.memory_limit_gib (4e-05): the images of ")
    assert train_batches(replace(data, memory_limit_gib=5e-5), BatchSplit(9, 1, 1))
    with pytest.raises(UserError, match=r"data.memory_limit_gib \(0.0\): must be positive"):
        replace(data, memory_limit_gib=0.0)
    assert memory_loader._free_bytes(CPU) > 1 << 20
    monkeypatch.setattr(memory_loader, "_free_bytes", lambda _: 1000)
    assert "cpu has 0.00 GiB free; set data.loader=auto" in message_of(data)

"""The DALI backend: what only DALI can do wrong, and what only a GPU can."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import resnet_dist
from resnet_dist.config import Config, DataConfig
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read import decode
from resnet_dist.errors import UserError
from tests.loading import change, eval_loader, open_split, train_batches
from tests.unit.loaders.test_contract import num_threads, wait_for_threads

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def config(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    cache = tmp_path_factory.getbasetemp() / "cache"
    data = DataConfig(root=str(image_root), cache_dir=str(cache), loader="dali", train_size=32)
    return change(Config(data=data), eval_size=48, eval_resize_size=56)


def test_a_flip_is_an_exact_mirror_image(config: Config) -> None:
    index = open_split(config)
    plain, mirrored = (
        next(
            train_batches(change(config, flip_probability=p), index, BatchSplit(27, 1, 1), (0, 1))
        ).images
        for p in (0.0, 1.0)
    )
    difference = (plain - mirrored.flip(3)).abs() * min(255 * s for s in config.data.std)
    assert difference.mean() < 0.01  # of 255: a value may be rounded the other way
    assert difference.max() < 1.1


def test_damage_that_only_dali_sees_is_named(
    config: Config, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(image_root, tmp_path / "data"))
    victim = root / "val/bee/001.jpg"
    victim.write_bytes(victim.read_bytes()[:-300])
    monkeypatch.setattr(decode, "make_plain", lambda encoded, *_: encoded)
    config = change(config, root=str(root))
    index = open_split(config, "val")
    before = num_threads()
    truncated = re.escape(f"{victim}): truncated or damaged image (")
    with pytest.raises(UserError, match=truncated) as first:
        list(eval_loader(config, index, 5, num_workers=1).batches())
    monkeypatch.setattr(decode, "decode_rgb", lambda *_: None)
    only_dali = re.escape(f"{victim}): DALI cannot decode this image")
    with pytest.raises(UserError, match=only_dali) as second:
        list(eval_loader(config, index, 5, num_workers=1).batches())
    wait_for_threads(before)  # although the tracebacks are alive: see `_Stream.next_output`
    assert first.tb is not second.tb


def test_missing_dali_is_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "resnet_dist.data.loaders.dali_pipeline", raising=False)
    monkeypatch.delitem(sys.modules, "resnet_dist.data.loaders.dali_backend", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"data\.loader \(dali\).*install.*data\.loader=torch"):
        import resnet_dist.data.loaders.dali_backend  # noqa: F401


def test_one_file_imports_dali() -> None:
    package = Path(resnet_dist.__file__).parent
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) nvidia", path.read_text(), re.MULTILINE)
    ]
    assert importing == ["data/loaders/dali_pipeline.py"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_gpu_batches_equal_those_of_the_cpu(config: Config, crop: Any) -> None:
    config = change(config, crop=crop)
    device = torch.device("cuda", 0)
    arguments = (config, open_split(config), BatchSplit(9, 1, 1), (0, 6))
    on_gpu = list(train_batches(*arguments, num_workers=2, device=device))
    on_cpu = list(train_batches(*arguments, num_workers=2))
    for left, right in zip(on_gpu, on_cpu, strict=True):
        assert left.images.device == device
        assert left.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
        assert torch.equal(left.labels.cpu(), right.labels)
        difference = (left.images.cpu() - right.images).abs() * 255 * max(config.data.std)
        assert difference.mean() < 0.5  # of 255: nvJPEG's inverse transform is not libjpeg's

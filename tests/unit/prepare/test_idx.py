"""IDX files become class folders; what is none is named."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_dist.config.load import load_config
from resnet_dist.models.build import build_model
from tests.unit.prepare.packing import Prepare


def idx(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options for 40 and 20 images of 10 classes."""
    words = []
    for split, count in (("train", 40), ("val", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for what, array in (("images", images), ("labels", labels)):
            path = tmp_path / f"{split}-{what}.gz"
            path.write_bytes(gzip.compress(idx(array)))
            words += [f"--{split}-{what}", str(path)]
    return words


def test_pixels_and_labels_are_those_of_the_file(
    files: list[str], prepare: Prepare, tmp_path: Path
) -> None:
    names = ",".join(f"class {number}" for number in range(10))
    code, said = prepare("idx", *files, "--out", str(tmp_path / "out"), "--classes", names)
    assert code == 0, said
    assert "train: 40 images" in said
    expected = np.random.default_rng(40).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    found = sorted((tmp_path / "out/train").glob("*/*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in found] == [f"class {i % 10}" for i in range(40)]
    assert np.array_equal(np.stack([np.array(Image.open(path)) for path in found]), expected)
    code, said = prepare("idx", *files, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "is not empty" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "says 40 x 28 x 28 and holds 31359 bytes"),
        (lambda _: b"", "is no IDX file of bytes"),
        (lambda content: b"\0\0\x0d" + content[3:], "is no IDX file of bytes"),
        (lambda content: content[:3] + b"\1" + content[4:], "has 1 dimensions, not 3"),
        (lambda content: b"\x1f\x8b" + content, "cannot be read"),
    ],
)
def test_what_is_no_idx_file(
    files: list[str],
    prepare: Prepare,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    said: str,
) -> None:
    path = Path(files[1])
    path.write_bytes(change(gzip.decompress(path.read_bytes())))
    code, found = prepare("idx", *files, "--out", str(tmp_path / "out"))
    assert code == 2
    assert said in found


def num_parameters(recipe: str, num_classes: int) -> int:
    config = load_config([recipe]).config
    model = build_model(config.model, num_classes=num_classes, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_networks_of_the_texts_have_their_numbers_of_parameters() -> None:
    """Dive into Deep Learning's ResNet-18 for one channel; the notebook's ResNet-9; Keras' ResNet50
    (25,636,712 with its 53,120 running statistics, which are no parameters here)."""
    assert num_parameters("fashion_resnet18", 10) == 11_178_378
    assert num_parameters("cifar10_resnet9_notebook", 10) == 6_575_370
    assert num_parameters("resnet50_v1_bias", 1000) == 25_636_712 - 53_120

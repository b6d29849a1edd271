"""IDX files, in which MNIST and its relatives are published, as class folders of PNGs.

A file is two zero bytes, a type (8: bytes), a number of dimensions, their sizes as big-endian
32-bit integers, then the values (yann.lecun.com/exdb/mnist); .gz is unpacked on the way.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data.read.limits import MOST_PIXELS
from resnet_dist.errors import UserError
from resnet_dist.system import workers

_BYTES = 8
_MOST_IMAGES = 10_000_000


def read_idx(path: Path, option: str, *, num_dimensions: int) -> NDArray[np.uint8]:
    """The array in a file. Raises UserError if it is not one of bytes with so many dimensions."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{option} ({path}): cannot be read ({error}); give an IDX file") from None
    head = 4 + 4 * num_dimensions
    if len(content) < head or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise UserError(f"{option} ({path}): is no IDX file of bytes; give one as published")
    if content[3] != num_dimensions:
        raise UserError(
            f"{option} ({path}): has {content[3]} dimensions, not {num_dimensions}; images have "
            f"three, labels one"
        )
    shape = struct.unpack(f">{num_dimensions}I", content[4:head])
    if len(content) - head != np.prod(shape, dtype=np.float64):
        raise UserError(
            f"{option} ({path}): says {' x '.join(map(str, shape))} and holds "
            f"{len(content) - head} bytes; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def write_class_folders(
    images: Path, labels: Path, option: str, folder: Path, names: Sequence[str] | None
) -> int:
    """Write the images of a split as `folder/CLASS/NUMBER.png`. Returns their number.

    `names`: of the classes in the order of their numbers; None: the numbers. Raises UserError.
    """
    pixels = read_idx(images, f"--{option}-images", num_dimensions=3)
    numbers = read_idx(labels, f"--{option}-labels", num_dimensions=1)
    if len(pixels) != len(numbers):
        raise UserError(
            f"--{option}-labels ({labels}): holds {len(numbers)} labels for {len(pixels)} images; "
            f"give the files of one release"
        )
    if not 0 < len(pixels) <= _MOST_IMAGES or not 0 < pixels[0].size <= MOST_PIXELS:
        raise UserError(f"--{option}-images ({images}): holds no images of a usual size")
    most = int(numbers.max())
    if names is not None and most >= len(names):
        raise UserError(f"--classes: has {len(names)} names, and {labels} has class {most}")
    known = names or [f"{number:0{len(str(most))}d}" for number in range(most + 1)]
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out ({folder}): is not empty; give another folder, or remove it")
    try:
        for number in np.unique(numbers).tolist():
            (folder / known[number]).mkdir(parents=True, exist_ok=True)
        chunks = np.array_split(np.arange(len(pixels)), max(1, len(pixels) // 2000))
        write = partial(_write, folder, known)
        with workers.process_pool(2) as pool:
            list(pool.map(write, *zip(*((pixels[c], numbers[c], c) for c in chunks), strict=True)))
    except OSError as error:
        raise UserError(f"--out ({folder}): cannot be written ({error.strerror})") from None
    return len(pixels)


def _write(
    folder: Path,
    names: Sequence[str],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    numbers: NDArray[np.int64],
) -> None:
    for image, label, number in zip(pixels, labels.tolist(), numbers.tolist(), strict=True):
        Image.fromarray(image).save(folder / names[label] / f"{number:06d}.png", compress_level=1)

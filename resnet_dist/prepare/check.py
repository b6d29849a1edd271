"""One image: is it whole, and what of it is stored?

Owns what counts as damage, and which images are re-encoded. Reads and writes no file.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data.read.decode import decode_bytes, read_frame_header, reason_of
from resnet_dist.data.read.limits import too_large

_JPEG_START = b"\xff\xd8"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JFIF = b"JFIF\0"
_UNKNOWN_JFIF = "unknown JFIF revision"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is stored of each image, and of how many in a shard."""

    samples_per_shard: int = 1024
    max_side: int | None = None
    """Longest side after shrinking, pixels; smaller images stay as they are."""
    short_side: int | None = None
    """Shorter side after shrinking, pixels."""
    quality: int = 95
    """JPEG quality of what is re-encoded."""
    exact: bool = False
    """Store also the odd ones (CMYK, PNG under a JPEG's name) byte for byte."""


class BadImageError(Exception):
    """The image cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Checked:
    """An image that can be used, as it is to be stored."""

    content: bytes
    height: int
    width: int
    suffix: str
    """jpg or png: what the bytes are, whatever the file was called."""
    is_reencoded: bool
    complaint: str | None
    """What the decoder said about an image that it decoded to its full size all the same."""


def check(encoded: NDArray[np.uint8], name: str, options: Options) -> Checked:
    """Decode an image of a file called `name`; decide what is stored.

    EXIF rotation is ignored, as the published pipelines do. Raises BadImageError if it is cut off
    or no JPEG or PNG image.
    """
    start = bytes(encoded.data[:8])
    is_jpeg = start.startswith(_JPEG_START)
    if not is_jpeg and start != _PNG_START:
        raise BadImageError("the file is empty" if not len(encoded) else "not a JPEG or PNG image")
    _check_size(encoded)
    pixels, complaint = _decode(encoded)
    if _UNKNOWN_JFIF in complaint:  # harmless, but only the first complaint is printed
        _, complaint = _decode(_with_known_jfif(encoded))
    height, width = pixels.shape[1:]
    size = _shrunk(height, width, options)
    channels = read_frame_header(encoded.data)[2] if is_jpeg else 0
    is_odd = channels == 4 or (not is_jpeg and not name.lower().endswith(".png"))
    if size == (height, width) and (options.exact or not is_odd):
        suffix = "jpg" if is_jpeg else "png"
        return Checked(encoded.tobytes(), height, width, suffix, False, complaint or None)
    content = _encode(pixels, size, options.quality, is_gray=channels == 1)
    return Checked(content, *size, "jpg", True, complaint or None)


def _check_size(encoded: NDArray[np.uint8]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but readable headers
            Image.MAX_IMAGE_PIXELS = None  # the limit is `too_large`'s
            with Image.open(io.BytesIO(encoded.data), formats=("JPEG", "PNG")) as image:
                width, height = image.size
    except Exception as error:  # Pillow's plugins raise anything on a damaged header
        raise BadImageError(f"damaged header ({type(error).__name__}: {error})") from None
    if reason := too_large(height, width, len(encoded)):
        raise BadImageError(f"too large ({reason})")


def _decode(encoded: NDArray[np.uint8]) -> tuple[torch.Tensor, str]:
    """`[3, H, W]` uint8, and what the decoding library complained about.

    A JPEG with damage inside decodes to its full size, part of it grey or shifted: libjpeg calls
    that a warning. torchvision's copy of it prints warnings to the process's stderr.
    """
    with _captured_stderr() as said:
        try:
            image = decode_bytes(encoded)
        except RuntimeError as error:
            raise BadImageError(f"truncated or damaged ({reason_of(error)})") from None
    return image, said[0] if said else ""


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Lines that libraries print to file descriptor 2 meanwhile; there when the block ends."""
    lines: list[str] = []
    captured, before = os.memfd_create("stderr"), os.dup(2)
    os.dup2(captured, 2)
    try:
        yield lines
    finally:
        os.dup2(before, 2)
        os.close(before)
        content = os.pread(captured, 4096, 0).decode(errors="replace")
        os.close(captured)
        lines += content.split("\n")[:-1]


def _with_known_jfif(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    at = bytes(encoded.data[:64]).find(_JFIF)
    known = encoded.copy()
    known[at + len(_JFIF)] = 1
    return known


def _shrunk(height: int, width: int, options: Options) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    factor = 1.0
    if options.max_side is not None:
        factor = min(factor, options.max_side / long)
    if options.short_side is not None:
        factor = min(factor, options.short_side / short)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _encode(pixels: torch.Tensor, size: tuple[int, int], quality: int, *, is_gray: bool) -> bytes:
    array = pixels[0].numpy() if is_gray else pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()

"""Encoded bytes to pixels, as the published pipelines see them.

Owns what counts as a readable image: three channels always, EXIF rotation ignored, cut-off files
refused; and the error message that names a file that is not. Does not crop or resize.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image

from resnet_dist.data.index.index import Index
from resnet_dist.data.read.limits import too_large
from resnet_dist.errors import UserError

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_BIT_DEPTH_AT = 24
_CMYK_CHANNELS = 4


def decode_bytes(encoded: NDArray[np.uint8]) -> torch.Tensor:
    """`[3, height, width]` uint8 from `[length]` uint8: the only place where a decoder is called.

    torchvision 0.29 announces that its decoder will move to torchcodec. That one (0.17) gives the
    same pixels in the same time, but turns images by their EXIF orientation and cannot be told not
    to; the published pipelines ignore it. Raises RuntimeError for damaged or cut-off images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        image: torch.Tensor = decode_image(torch.from_numpy(encoded), mode=ImageReadMode.RGB)
    if image.dtype == torch.uint16:  # PNG with 16 bits per channel
        return (image.to(torch.int32) >> 8).to(torch.uint8)
    return image


def decode_checked(encoded: NDArray[np.uint8]) -> torch.Tensor:
    """As `decode_bytes`, for bytes of unknown origin: a header that claims more pixels than any
    image is refused before it is decoded. Raises RuntimeError."""
    data = encoded.data
    height = width = 0
    if bytes(data[:2]) == _JPEG_START:
        height, width, _ = read_frame_header(data)
    elif bytes(data[:8]) == _PNG_START:
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if not height or not width:
        raise RuntimeError("no JPEG or PNG image, or cut off in its header")
    reason = too_large(height, width, len(encoded))
    if reason:
        raise RuntimeError(reason)
    try:
        return decode_bytes(encoded)
    except RuntimeError as error:
        raise RuntimeError(f"truncated or damaged image ({reason_of(error)})") from None


def decode_rgb(encoded: NDArray[np.uint8], index: Index, sample_id: int) -> torch.Tensor:
    """`[3, height, width]` uint8 from `[length]` uint8.

    Raises UserError, naming the file, if it cannot be decoded to its end or has not the size that
    the index says.
    """
    try:
        image = decode_bytes(encoded)
    except RuntimeError as error:
        raise UserError(
            f"data.root ({index.shown_path(sample_id)}): truncated or damaged image "
            f"({reason_of(error)}); {index.remedy}"
        ) from None
    height, width = index.heights[sample_id], index.widths[sample_id]
    if image.shape[1:] != (height, width):
        raise UserError(
            f"data.root ({index.shown_path(sample_id)}): changed since the index was built "
            f"({image.shape[1]}x{image.shape[2]} pixels now, {height}x{width} then); restore "
            f"the file, or remove {index.columns.parent} and start again to rebuild the index"
        )
    return image


def reason_of(error: RuntimeError) -> str:
    """What a decoder says, without the place in its source."""
    return re.sub(r"^.*\.cpp:\d+,? ?", "", str(error).split("\n")[0]).rstrip(".")


def make_plain(encoded: NDArray[np.uint8], index: Index, sample_id: int) -> NDArray[np.uint8]:
    """The same image in a form that every decoder reads alike, mostly the bytes themselves.

    CMYK without Adobe's marker and PNG with 16 bits are where decoders disagree: CMYK (22 files of
    ImageNet) and such PNG come back decoded, as PPM. A decoder that is asked for a part of an
    image sees neither that the end is missing nor that the size is another: where the end mark or
    the size is not as expected, the image is decoded to find out. Raises UserError as `decode_rgb`.
    """
    data = encoded.data
    if bytes(data[:2]) == _JPEG_START:
        *size, channels = read_frame_header(data)
        is_odd = channels == _CMYK_CHANNELS
        has_end = bytes(data[-2:]) == _JPEG_END
    else:
        size = [int.from_bytes(data[20:24]), int.from_bytes(data[16:20])]
        is_odd = data[_PNG_BIT_DEPTH_AT] == 16
        has_end = bytes(data[-8:]) == _PNG_END
    if is_odd:
        return _to_ppm(decode_rgb(encoded, index, sample_id))
    if not has_end or size != [index.heights[sample_id], index.widths[sample_id]]:
        decode_rgb(encoded, index, sample_id)  # bytes after the end are harmless
    return encoded


def is_ppm(encoded: NDArray[np.uint8]) -> bool:
    """Whether `make_plain` has decoded it."""
    return bytes(encoded.data[:2]) == b"P6"


def _to_ppm(image: torch.Tensor) -> NDArray[np.uint8]:
    _, height, width = image.shape
    header = np.frombuffer(b"P6\n%d %d\n255\n" % (width, height), dtype=np.uint8)
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return np.concatenate([header, pixels.reshape(-1)])


def read_frame_header(data: memoryview) -> tuple[int, int, int]:
    """Height, width and channels of a JPEG (ITU-T T.81, B.2.2); zeros if it has no frame header.

    Segments are skipped by their length, so that a thumbnail's header is not taken for it.
    """
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return height, width, data[at + 9]
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0, 0, 0

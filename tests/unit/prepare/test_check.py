"""One image: what is damage, what is encoded again, and what is stored of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resnet_dist.prepare.check import BadImageError, Checked, Options, check


def jpeg(height: int = 64, width: int = 96, *, mode: str = "RGB", seed: int = 0) -> bytes:
    """A JPEG with detail everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, "JPEG", quality=90)
    return out.getvalue()


def examine(content: bytes, name: str = "x.jpg", **options: object) -> Checked:
    return check(np.frombuffer(bytearray(content), np.uint8), name, Options(**options))


def test_a_whole_image_is_stored_as_it_is() -> None:
    content = jpeg()
    for name in ("x.jpg", "x.JPEG", "x.png"):  # a JPEG is one, whatever it is called
        checked = examine(content, name)
        assert checked == Checked(content, 64, 96, "jpg", False, None)
    assert examine(content + b"trailing bytes").complaint is None


def test_damage_is_found() -> None:
    content = jpeg()
    for part in (content[:-2], content[: len(content) // 2], content[:200]):
        with pytest.raises(BadImageError):
            examine(part)
    for other, reason in ((b"", "empty"), (b"GIF89a" * 9, "not a JPEG"), (b"\xff\xd8xx", "header")):
        with pytest.raises(BadImageError, match=reason):
            examine(other)
    # Cut off in the middle and closed with an end mark: decodes to its full size, half of it grey.
    closed = examine(content[: len(content) // 2] + b"\xff\xd9")
    assert (closed.height, closed.width) == (64, 96)
    assert closed.complaint == "Corrupt JPEG data: premature end of data segment"


def test_damage_inside_is_found_in_most_cases() -> None:
    """Any 20 bytes of the picture's data overwritten, all else as it was."""
    content = jpeg(200, 200)
    begin = content.index(b"\xff\xda") + 20
    noticed = 0
    for start in range(begin, len(content) - 30, (len(content) - begin) // 40):
        spoiled = bytearray(content)
        spoiled[start : start + 20] = bytes(20)
        noticed += examine(bytes(spoiled)).complaint is not None
    assert noticed >= 35


def test_an_unknown_jfif_version_is_harmless_but_hides_nothing() -> None:
    content = bytearray(jpeg())
    content[content.index(b"JFIF\0") + 5] = 7
    assert examine(bytes(content)).complaint is None
    cut = bytes(content[: len(content) // 2]) + b"\xff\xd9"
    assert "premature end" in str(examine(cut).complaint)


def test_a_panorama_is_taken_as_in_training() -> None:
    """200 megapixels, more than Pillow's own limit."""
    content = io.BytesIO()
    Image.new("L", (20000, 10000), 128).save(content, "JPEG", quality=20)
    assert (examine(content.getvalue()).height, examine(content.getvalue()).width) == (10000, 20000)


def test_a_size_beyond_reason_is_refused_unread() -> None:
    content = bytearray(jpeg())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImageError, match="65535x65535 pixels"):
        examine(bytes(content))


def test_odd_ones_are_reencoded() -> None:
    cmyk = jpeg(40, 50, mode="CMYK")
    checked = examine(cmyk)
    assert checked.is_reencoded
    with Image.open(io.BytesIO(checked.content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 40))
    assert examine(cmyk, exact=True).content == cmyk
    out = io.BytesIO()
    smooth = Image.fromarray(np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8))
    smooth.convert("RGB").save(out, "PNG")
    checked = examine(out.getvalue(), "x.JPEG")
    assert (checked.suffix, checked.is_reencoded) == ("jpg", True)
    with Image.open(io.BytesIO(checked.content)) as image:
        difference = np.abs(np.asarray(image)[..., 0].astype(int) - np.asarray(smooth))
    assert difference.max() <= 4
    assert examine(out.getvalue(), "x.PNG").content == out.getvalue()  # lossless data stay so
    assert examine(out.getvalue(), "x.JPEG", exact=True).suffix == "png"


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"max_side": 48}, (32, 48)),
        ({"short_side": 32}, (32, 48)),
        ({"max_side": 60, "short_side": 16}, (16, 24)),
        ({"short_side": 64}, (64, 96)),
        ({"max_side": 500}, (64, 96)),
    ],
)
def test_shrinking(options: dict[str, int], size: tuple[int, int]) -> None:
    content = jpeg()
    checked = examine(content, **options)
    assert (checked.height, checked.width) == size
    with Image.open(io.BytesIO(checked.content)) as image:
        assert image.size == size[::-1]
    assert checked.is_reencoded == (size != (64, 96)) == (checked.content != content)
    if checked.is_reencoded:
        assert len(checked.content) > len(examine(content, quality=40, **options).content)
        gray = examine(jpeg(mode="L"), **options)
        with Image.open(io.BytesIO(gray.content)) as image:
            assert image.mode == "L"

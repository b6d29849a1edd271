"""The pictures of the embedded data set: one shape on a busy ground, in ten classes.

Pure: `render(split, index)` depends on nothing but its arguments and VERSION, and is the same byte
for byte with one version of Pillow. The label survives horizontal flips and moderate random resized
crops. Position, size, rotation, colours, contrast, ground, noise, image size and aspect ratio vary,
so that pixels as such say little about the class. Files are the business of
`resnet_dist.data.quickstart.dataset`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resnet_dist.rng import Stream, random_words, to_uniform

VERSION = 1
"""Part of the folder's name and of every random number: raise it with any change to a pixel."""
SPLIT_SIZES = {"train": 4000, "val": 1000}

Point = tuple[float, float]
Color = tuple[int, int, int]

_SHORT_SIDES = (56, 96)
_MAX_ASPECT = 1.3
_MAX_SIDE = 128
_SUPERSAMPLING = 2
_NUM_UNIFORMS = 128
_NOISE_WORDS = _MAX_SIDE * _MAX_SIDE // 8
_UNIT_CIRCLE = [(math.cos(math.pi * i / 24), math.sin(math.pi * i / 24)) for i in range(48)]


class _Random:
    """The random numbers of one image, handed out one after the other."""

    def __init__(self, split: str, index: int) -> None:
        row = random_words(
            VERSION,
            Stream.SHAPES,
            list(SPLIT_SIZES).index(split),
            start=index,
            count=1,
            words=_NUM_UNIFORMS + _NOISE_WORDS,
        )[0]
        self._uniforms = iter(to_uniform(row[:_NUM_UNIFORMS]).tolist())
        self._noise = row[_NUM_UNIFORMS:].astype("<u8").view(np.uint8)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(next(self._uniforms))

    def integer(self, low: int, high: int) -> int:
        """Uniform in [low, high], both ends included."""
        return low + int((high + 1 - low) * next(self._uniforms))

    def chance(self, probability: float) -> bool:
        return float(next(self._uniforms)) < probability

    def noise(self, height: int, width: int) -> NDArray[np.float32]:
        """`[height, width]` in [-0.5, 0.5]; always the same bytes for one image."""
        noise: NDArray[np.uint8] = self._noise[: height * width].reshape(height, width)
        return noise.astype(np.float32) / np.float32(255) - np.float32(0.5)


class _Part(NamedTuple):
    """A polygon in the unit circle that is filled (solid) or cut out of what is there."""

    points: list[Point]
    is_solid: bool = True


def _disc(radius: float, *, center: Point = (0.0, 0.0)) -> list[Point]:
    return [(center[0] + radius * cos, center[1] + radius * sin) for cos, sin in _UNIT_CIRCLE]


def _corners(radii: list[float]) -> list[Point]:
    """A polygon with one corner a radius, at equal angles, the first one at the top."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _checkerboard(random: _Random) -> list[_Part]:
    cells = random.integer(4, 6)
    side = 1.7 / cells
    starts = [-0.85 + side * i for i in range(cells)]
    return [
        _Part(_box(x, y, x + side, y + side))
        for i, x in enumerate(starts)
        for j, y in enumerate(starts)
        if (i + j) % 2 == 0
    ]


def _circle(random: _Random) -> list[_Part]:
    return [_Part(_disc(random.uniform(0.8, 0.95)))]


def _crescent(random: _Random) -> list[_Part]:
    offset = random.uniform(0.42, 0.6)
    return [_Part(_disc(1.0)), _Part(_disc(0.85, center=(offset, 0.0)), is_solid=False)]


def _cross(random: _Random) -> list[_Part]:
    arm = random.uniform(0.22, 0.32)
    return [_Part(_box(-1.0, -arm, 1.0, arm)), _Part(_box(-arm, -1.0, arm, 1.0))]


def _heart(random: _Random) -> list[_Part]:
    """The well-known curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    width = random.uniform(0.9, 1.05)
    points = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((width * math.sin(t) ** 3, -(y + 2.5) / 15))
    return [_Part(points)]


def _ring(random: _Random) -> list[_Part]:
    hole = random.uniform(0.5, 0.68)
    return [_Part(_disc(0.95)), _Part(_disc(hole), is_solid=False)]


def _square(random: _Random) -> list[_Part]:
    half = random.uniform(0.7, 0.8)
    return [_Part(_box(-half, -half, half, half))]


def _star(random: _Random) -> list[_Part]:
    return [_Part(_corners([1.05, random.uniform(0.4, 0.48)] * 5))]


def _stripes(random: _Random) -> list[_Part]:
    bands = random.integer(4, 6)
    period = 2.0 / (bands - 0.5)
    parts = []
    for i in range(bands):
        left = -1.0 + period * i
        middle = left + period / 4
        half_length = math.sqrt(max(0.15, 1.0 - middle * middle))
        parts.append(_Part(_box(left, -half_length, left + period / 2, half_length)))
    return parts


def _triangle(random: _Random) -> list[_Part]:
    return [_Part(_corners([random.uniform(0.95, 1.1) for _ in range(3)]))]


_OUTLINES: dict[str, Callable[[_Random], list[_Part]]] = {
    "checkerboard": _checkerboard,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
}
CLASSES = tuple(_OUTLINES)
"""Class names in the order of their labels (sorted, as for any folder)."""


def _color(random: _Random, luma: float, *, chroma: float) -> Color:
    """A random hue of the given brightness: contrast must survive the conversion to gray."""
    red, green, blue = (random.uniform(-chroma, chroma) for _ in range(3))
    shift = luma - (0.299 * red + 0.587 * green + 0.114 * blue)
    red, green, blue = (min(max(c + shift, 0.0), 1.0) for c in (red, green, blue))
    return round(255 * red), round(255 * green), round(255 * blue)


def _texture(
    random: _Random, size: tuple[int, int], luma: float, *, amplitude: float
) -> Image.Image:
    """A smooth patchwork: a few random brightnesses of one colour, enlarged bicubically."""
    base = _color(random, luma, chroma=0.45)
    columns, rows = random.integer(2, 4), random.integer(2, 4)
    coarse = bytearray()
    for _ in range(columns * rows):
        shade = round(255 * random.uniform(-amplitude, amplitude))
        coarse.extend(min(max(channel + shade, 0), 255) for channel in base)
    patches = Image.frombytes("RGB", (columns, rows), bytes(coarse))
    return patches.resize(size, Image.Resampling.BICUBIC)


def _stamp(canvas: Image.Image, parts: list[_Part], fill: Image.Image | Color) -> None:
    """Fill polygons, given in pixels, on the canvas; edges are smooth by supersampling."""
    width, height = canvas.size
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    for part in parts:
        points = [(round(_SUPERSAMPLING * x), round(_SUPERSAMPLING * y)) for x, y in part.points]
        pen.polygon(points, fill=255 if part.is_solid else 0)
    canvas.paste(fill, (0, 0, width, height), mask.reduce(_SUPERSAMPLING))


def _place(points: list[Point], center: Point, radius: float, angle: float) -> list[Point]:
    """Turn and enlarge an outline in the unit circle, and move it to `center`."""
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    return [(center[0] + cos * x - sin * y, center[1] + sin * x + cos * y) for x, y in points]


def _stamp_distractor(random: _Random, canvas: Image.Image, outline: list[Point]) -> None:
    center = random.uniform(0, canvas.width), random.uniform(0, canvas.height)
    radius, angle = min(canvas.size) * random.uniform(0.02, 0.06), random.uniform(0, math.pi)
    color = _color(random, random.uniform(0.1, 0.9), chroma=0.45)
    _stamp(canvas, [_Part(_place(outline, center, radius, angle))], color)


def _stamp_line(random: _Random, canvas: Image.Image) -> None:
    half_length = random.uniform(3.0, 9.0)
    _stamp_distractor(random, canvas, _box(-half_length, -0.2, half_length, 0.2))


def _stamp_shape(random: _Random, canvas: Image.Image, parts: list[_Part], luma: float) -> None:
    """The shape itself: wholly inside the centre square, which is what evaluation looks at."""
    short = min(canvas.size)
    radius = short * random.uniform(0.3, 0.43)
    reach = short / 2 - radius
    center = (
        canvas.width / 2 + random.uniform(-reach, reach),
        canvas.height / 2 + random.uniform(-reach, reach),
    )
    angle = random.uniform(0, 2 * math.pi)
    placed = [part._replace(points=_place(part.points, center, radius, angle)) for part in parts]
    surface = _texture(random, canvas.size, luma, amplitude=random.uniform(0.0, 0.08))
    _stamp(canvas, placed, surface)


def render(split: str, index: int) -> Image.Image:
    """Image `index` of a split, RGB or (one in twelve) L; its class is `index % len(CLASSES)`."""
    random = _Random(split, index)
    short = random.integer(*_SHORT_SIDES)
    long = round(short * random.uniform(1.0, _MAX_ASPECT))
    width, height = (long, short) if random.chance(0.5) else (short, long)
    is_gray = random.chance(1 / 12)

    # The shape is brighter than its ground as often as darker: mean brightness tells nothing.
    contrast = random.uniform(0.32, 0.6)
    low = random.uniform(0.06, 0.94 - contrast)
    ground, shape = (low, low + contrast) if random.chance(0.5) else (low + contrast, low)
    canvas = _texture(random, (width, height), ground, amplitude=random.uniform(0.0, 0.14))
    for _ in range(random.integer(0, 2)):
        _stamp_line(random, canvas)
    for _ in range(random.integer(0, 2)):
        _stamp_distractor(random, canvas, _disc(1.0))
    _stamp_shape(random, canvas, _OUTLINES[CLASSES[index % len(CLASSES)]](random), shape)
    if random.chance(0.3):
        _stamp_line(random, canvas)

    noise = random.noise(height, width)[:, :, None] * np.float32(255 * random.uniform(0.0, 0.2))
    pixels = np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("L") if is_gray else image

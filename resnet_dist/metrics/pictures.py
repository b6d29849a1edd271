"""Images with a line of words below each, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SMALLEST = 96
"""Sides below it are enlarged, so that there is room for words."""
_TEXT_PIXELS = 11
_LINE_PIXELS = 14


def captioned(images: Tensor, captions: Sequence[str]) -> Tensor:
    """`[n, 3, H', W']` uint8 on the CPU from `[n, 3, H, W]` uint8 on any device and n captions of
    one or more lines, cut off where an image ends."""
    assert len(images) == len(captions)
    factor = max(1, -(-_SMALLEST // min(images.shape[2:])))
    pictures = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    height, width = pictures.shape[2], pictures.shape[3]
    font = ImageFont.load_default(_TEXT_PIXELS)
    result = torch.full((len(images), 3, height + lines * _LINE_PIXELS, width), 255).byte()
    result[:, :, :height] = pictures
    for number, caption in enumerate(captions):
        strip = Image.new("RGB", (width, lines * _LINE_PIXELS), "white")
        draw = ImageDraw.Draw(strip)
        for line, text in enumerate(caption.split("\n")):
            draw.text((2, line * _LINE_PIXELS), _shortened(text, font, width - 4), "black", font)
        words = torch.from_numpy(np.asarray(strip).copy())
        result[number, :, height:] = words.permute(2, 0, 1)
    return result


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """What fits of a text; default fonts know Latin letters only."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text

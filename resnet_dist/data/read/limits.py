"""The largest image that is taken, in a folder and in shards alike.

A few bytes may claim any size, to take all memory; a file may be padded without end.
"""

from __future__ import annotations

MOST_PIXELS = 1 << 28
"""16384 x 16384."""
MOST_BYTES = 1 << 28
"""An encoded image's."""


def too_large(height: int, width: int, num_bytes: int) -> str | None:
    """Why an image is refused; None: it is not."""
    if height * width > MOST_PIXELS:
        return f"{height}x{width} pixels; {MOST_PIXELS} are the most"
    if num_bytes > MOST_BYTES:
        return f"{num_bytes} bytes; {MOST_BYTES} are the most"
    return None

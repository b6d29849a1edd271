"""How far the work is: a bar on a terminal, a line every ten seconds otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_EVERY_S = 10.0


class Progress:
    """Images and bytes done of a number of images, with rates and the time left, on stderr."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="img", desc=name, leave=False) if is_terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def reach(self, images: int, num_bytes: int) -> None:
        """So much is done since the beginning."""
        elapsed = max(time.monotonic() - self._began, 1e-6)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{num_bytes / elapsed / 1e6:.0f} MB/s", refresh=False)
            self._bar.update(images - self._done)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            left = (self._total - images) * elapsed / max(images, 1)
            print(
                f"{self._name}: {images} of {self._total} images, {images / elapsed:.0f} img/s, "
                f"{num_bytes / elapsed / 1e6:.0f} MB/s, {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )
        self._done = images


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"

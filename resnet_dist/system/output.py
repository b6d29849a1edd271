"""What a run says to people, which must never end it.

A log on a full disk, a pipe whose reader has gone, a terminal that was closed or cannot show a
letter: training continues, its records are in the run folder, and one line says so where it can.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors after which nobody will read this stream again."""


class SafeStream:
    """A text stream whose writes never raise. All else is the stream's that it stands for."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text. Returns its length."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            plain = text.encode(encoding, "backslashreplace").decode(encoding)
            return self.write(plain) and len(text)
        except (OSError, ValueError) as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        number = getattr(error, "errno", errno.EBADF)  # a ValueError: the file was closed
        if number in _GONE:
            self._lead_nowhere()
        if self._has_failed:
            return
        self._has_failed = True
        why = getattr(error, "strerror", None) or str(error)
        other = sys.stderr if self._name == "stdout" else sys.stdout
        if isinstance(other, SafeStream) and not other._has_failed:
            other.write(f"warning: {self._name} cannot be written ({why}); the run continues\n")
            other.flush()

    def _lead_nowhere(self) -> None:
        """What is buffered and what follows is dropped, and the end of the process is quiet."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def keep_output_safe() -> None:
    """From now on no print and no progress bar of this process raises.

    Streams that were closed at its start lead nowhere, and no other file gets their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if not isinstance(stream, SafeStream):
            setattr(sys, name, cast("TextIO", SafeStream(stream, name)))


def say_now(text: str) -> None:
    """A line on stderr from a signal handler, where nothing may be locked or buffered."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())

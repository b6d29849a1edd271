"""The errors that end a run with an error message, and their exit codes."""

from __future__ import annotations

import os
import sys
import unicodedata


class UserError(ValueError):
    """Bad input: the message says what, where, and what to do.

    Entry points print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class AgreedError(UserError):
    """A UserError that was raised on every rank with the same words, so that one may speak."""


class GuardError(AgreedError):
    """A guard stopped the run: what was computed could not be trusted (EX_SOFTWARE of sysexits.h).

    A restart resumes from the last checkpoint.
    """

    exit_code = 70


class LoaderError(UserError):
    """A process that reads samples has ended. A restart resumes from the last checkpoint."""

    exit_code = GuardError.exit_code


class SuspendedError(UserError):
    """The ranks lost each other while the run was suspended. A restart resumes from the last
    checkpoint."""

    exit_code = GuardError.exit_code


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that steer a terminal, or cannot be seen or written."""


def printable(text: str, *, keeps: str = "") -> str:
    """The text with escape sequences, bytes that are no UTF-8, and what turns the direction of
    writing as backslash escapes; `keeps`: characters that stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(one)[1:-1] if unicodedata.category(one) in _HIDDEN and one not in keeps else one
        for one in text
    )


def has_control_characters(text: str) -> bool:
    """Whether a text would break a line, or steer a terminal."""
    return any(unicodedata.category(one) == "Cc" for one in text)


def report_error(error: UserError, *, speaks: bool) -> int:
    """Print the message, and leave it for torchrun's summary. Returns the exit code.

    `speaks`: whether this rank is the one to print it.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    if speaks:
        lines = printable(str(error), keeps="\n\t").splitlines()
        print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
        sys.stderr.flush()
    return error.exit_code

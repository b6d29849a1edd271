"""The errors that end a run with an error message, and their exit codes."""

from __future__ import annotations

import os
import sys


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


def report_error(error: UserError, *, speaks: bool) -> int:
    """Print the message, and leave it for torchrun's summary. Returns the exit code.

    `speaks`: whether this rank is the one to print it.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    if speaks:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.stderr.flush()
    return error.exit_code

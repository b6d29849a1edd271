"""The errors that end a run with a sentence, and the exit codes."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message says what, where, and what to do.

    Entry points print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class AgreedError(UserError):
    """A UserError that was raised on every rank with the same words, so that one may speak."""


class GuardError(AgreedError):
    """A guard stopped the run: what was computed could not be trusted (EX_SOFTWARE of sysexits.h).

    Started again, the run goes on from its last checkpoint.
    """

    exit_code = 70

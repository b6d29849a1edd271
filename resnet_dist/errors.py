"""The error that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message says what, where, and what to do.

    Entry points print it without a traceback and exit with code 2.
    """


class AgreedError(UserError):
    """A UserError that was raised on every rank with the same words, so that one may speak."""

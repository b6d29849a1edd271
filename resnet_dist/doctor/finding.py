"""What a check found, and the table of all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_WIDTH = 80


class Verdict(StrEnum):
    """How much it matters."""

    OK = "ok"
    WARN = "warn"
    """Training works, perhaps slowly."""
    FAIL = "FAIL"
    """Training will not start, or will not survive."""


@dataclass(frozen=True)
class Finding:
    """The result of one check on one host."""

    check: str
    verdict: Verdict
    what: str
    remedy: str = ""


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, what)


def warn(check: str, what: str, remedy: str) -> Finding:
    """It works, but."""
    return Finding(check, Verdict.WARN, what, remedy)


def fail(check: str, what: str, remedy: str = "") -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAIL, what, remedy)


def table(found: Sequence[tuple[str, Finding]]) -> list[str]:
    """One entry per check, 80 columns wide; hosts are named where there are several, and one of
    those that are well stands for all.

    `found`: host and finding, in the order of the checks.
    """
    hosts = list(dict.fromkeys(host for host, _ in found))
    width = max((len(finding.check) for _, finding in found), default=0)
    indent = " " * (width + 7)
    lines: list[str] = []
    well: dict[str, int] = {}
    for _, finding in found:
        well[finding.check] = well.get(finding.check, 0) + (finding.verdict is Verdict.OK)
    shown: set[str] = set()
    for host, finding in found:
        text = finding.what
        if finding.verdict is Verdict.OK:
            if finding.check in shown:
                continue
            shown.add(finding.check)
            if well[finding.check] > 1:
                text += f" (and {well[finding.check] - 1} more)"
        elif len(hosts) > 1:
            text = f"{host}: {text}"
        head = f"{finding.verdict:<5} {finding.check:<{width}} "
        lines += _wrapped(text, head, indent)
        if finding.remedy:
            lines += _wrapped(f"-> {finding.remedy}", indent, f"{indent}   ")
    return lines


def _wrapped(text: str, first: str, later: str) -> list[str]:
    """Lines of 80 columns; paths stay whole, so that they can be copied."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def conclusion(found: Sequence[Finding]) -> str:
    """The last line."""
    failed = sum(finding.verdict is Verdict.FAIL for finding in found)
    warned = sum(finding.verdict is Verdict.WARN for finding in found)
    if failed:
        return f"{failed} check(s) failed: mend them before you train"
    return f"fit to train{f', {warned} warning(s)' if warned else ''}"

"""Names that are unknown, shown beside the known one that was probably meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from resnet_dist.errors import printable


def look_alike(name: str, known: Iterable[str]) -> str | None:
    """A known name that a reader would take for this one: another case, form of an accent, kind of
    space or hyphen."""
    wanted = _skeleton(name)
    return next((one for one in known if _skeleton(one) == wanted), None)


def unknown_names(names: list[str], known: list[str]) -> str:
    """Names that are not among the known, the first five, for a message. Where one looks like a
    known name both are shown so that the difference is seen."""
    shown = []
    for name in names[:5]:
        other = look_alike(name, known)
        shown.append(printable(name) if other is None else f"{name!a} (there: {other!a})")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(shown)}{more}"


def _skeleton(name: str) -> str:
    kept = (
        one
        for one in unicodedata.normalize("NFKD", name).casefold()
        if one.isalnum()  # no accents, spaces, hyphens, marks of direction
    )
    return "".join(kept) or name

"""What the sections of the configuration are made with: free fields, and rules told all at once."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from resnet_dist.errors import UserError


def free(default: Any) -> Any:
    """A field that a resumed run may change: it does not alter what is computed."""
    return field(default=default, metadata={"exact": False})


class Rules:
    """Collects every broken rule of a section, so that the user sees them all at once."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def require(self, holds: bool, path: str, value: object, rule: str, remedy: str) -> None:
        """Note the rule as broken unless it holds."""
        if not holds:
            self.broken.append(f"{path} ({value!r}): {rule}; {remedy}")

    def enforce(self) -> None:
        """Raises UserError, a line a broken rule, if there is any."""
        if self.broken:
            raise UserError("\n".join(self.broken))

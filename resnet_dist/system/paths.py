"""Paths as people write them. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from resnet_dist.errors import UserError


def expanded(path: str | Path, what: str) -> Path:
    """The path with `~` and `~user` replaced. Raises UserError, which names `what` it is the value
    of, if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{what} ({path}): there is no such home folder; write the whole path, or set $HOME"
        ) from None

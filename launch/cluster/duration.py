"""Durations as users and Slurm write them."""

from __future__ import annotations

import math
import re

from resnet_dist.errors import UserError

_UNITS = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}


def minutes(text: str) -> int:
    """Minutes of a duration as users and Slurm write it. Raises UserError."""
    plain = str(text).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", plain)
    if plain and "".join(number + unit for number, unit in parts) == plain:
        total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+", plain):
        total = float(plain)
    elif match := re.fullmatch(r"(\d+)-(\d+)", plain):
        total = float(match[1]) * 1440 + float(match[2]) * 60  # D-HH
    elif match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?", plain):
        days, first, second, third = (int(part) if part else 0 for part in match.groups())
        if days or match[1] or match[4]:
            total = days * 1440 + first * 60 + second + third / 60
        else:
            total = first + second / 60  # MM:SS, as Slurm reads it
    else:
        total = 0.0
    if total <= 0:
        raise UserError(
            f"--time ({text}): is not a duration; write 24h, 90m, 2d12h, HH:MM:SS, D-HH or "
            f"D-HH:MM:SS"
        )
    return math.ceil(total)

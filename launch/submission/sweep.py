"""Sweeps: from `--sweep KEY=V1,V2 ...` to one list of `key=value` arguments per run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from resnet_dist.errors import UserError


def combinations(axes: Sequence[str]) -> list[list[str]]:
    """`seed=1,2 optim.lr=0.1` gives [[seed=1, optim.lr=0.1], [seed=2, optim.lr=0.1]].

    Commas inside brackets and quotes do not separate. Raises UserError.
    """
    lists: dict[str, list[str]] = {}
    for axis in axes:
        key, separator, text = axis.partition("=")
        values = [value for value in split_values(text) if value]
        if not key or not separator or not values:
            raise UserError(f"--sweep ({axis}): must be written as key=value1,value2")
        if key in lists:
            raise UserError(f"--sweep ({key}): is given twice; put all its values into one")
        if len(set(values)) < len(values):
            raise UserError(f"--sweep ({axis}): has a value twice")
        lists[key] = [f"{key}={value}" for value in values]
    return [list(values) for values in itertools.product(*lists.values())]


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows --sweep: axes, and settings of all runs, which have one value. A sweep of one
    run has axes of one value."""
    axes = [word for word in words if "=" not in word or len(split_values(word)) > 1]
    return (axes, [word for word in words if word not in axes]) if axes else (list(words), [])


def named_combinations(axes: Sequence[str]) -> dict[str, list[str]]:
    """The combinations by the names of their run folders. Raises UserError."""
    by_name: dict[str, list[str]] = {}
    for values in combinations(axes):
        name = ",".join(values).replace("/", "_")
        if name in by_name:
            raise UserError(
                f"--sweep: {' '.join(by_name[name])} and {' '.join(values)} would have the same "
                f"folder, {name}; submit them one by one, with a run.dir each"
            )
        by_name[name] = values
    return by_name


def split_values(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]

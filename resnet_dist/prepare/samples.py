"""What is to be packed: the samples of a split, in the order that the index of a folder has."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from resnet_dist.errors import UserError


@dataclass(frozen=True, slots=True)
class Sample:
    """One image where it comes from."""

    name: str
    """Class folder and path below it."""
    label: int
    """Position in the split's classes."""
    file: str
    """The image, or the archive that holds it."""
    offset: int
    length: int
    stamp: int
    """When the file was last changed, ns."""


@dataclass(frozen=True)
class Split:
    """The samples of one split, sorted by class, then by name."""

    name: str
    classes: list[str]
    cls: list[int]
    """For other readers of the shards: of each class, its number among the training classes."""
    samples: list[Sample]
    left_out: dict[str, int] = field(default_factory=dict)
    """Files that are no images of the classes, by kind."""


def numbers_of(classes: list[str], among: list[str]) -> list[int]:
    """The number of each class among others, all of which are there."""
    numbers = {name: number for number, name in enumerate(among)}
    return [numbers[name] for name in classes]


def refuse_twice(option: str, path: Path, samples: list[Sample]) -> None:
    """Raise UserError for two samples of one name, which lie beside each other."""
    for before, sample in pairwise(samples):
        if before.name == sample.name:
            raise UserError(
                f"{option} ({path}): holds {sample.name!r} twice; fetch the archive again"
            )

"""ImageNet as Kaggle's archive unpacks it: validation images in one folder, labels in a table.

SRC/LOC_val_solution.csv                 ImageId,PredictionString (wnid and boxes)
SRC/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG
SRC/ILSVRC/Data/CLS-LOC/val/*.JPEG
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from resnet_dist.data.index import scan
from resnet_dist.errors import UserError
from resnet_dist.prepare.samples import Sample, Split, numbers_of
from resnet_dist.system.names import unknown_names

TABLE = "LOC_val_solution.csv"
_BELOW = "ILSVRC/Data/CLS-LOC"
_LEVELS_UP = 4


def folder_of_splits(src: Path) -> Path:
    """The folder that holds train/ and val/: `src`, or the one that Kaggle's archive has below."""
    return src / _BELOW if (src / _BELOW).is_dir() else src


def is_flat(folder: Path) -> bool:
    """Whether a split has images and no class folders."""
    with os.scandir(folder) as entries:
        there = [entry for entry in entries if entry.name[0] != "."]
    return any(e.name.lower().endswith(scan.IMAGE_SUFFIXES) for e in there) and not any(
        entry.is_dir() for entry in there
    )


def read_flat(folder: Path, name: str, table: Path | None, classes: list[str]) -> Split:
    """A split whose labels a table gives. `classes`: those of the training split.

    Raises UserError if there is no table, or table and images do not fit.
    """
    path = _find(folder) if table is None else table
    labels = _read(path)
    with os.scandir(folder) as entries:
        images = [e for e in entries if e.name.lower().endswith(scan.IMAGE_SUFFIXES)]
    used = _check(folder, path, labels, {_stem(image.name) for image in images}, classes)
    number = {one: label for label, one in enumerate(used)}
    samples = []
    for image in images:
        cls, status = labels[_stem(image.name)], image.stat()
        place = (image.path, 0, status.st_size, status.st_mtime_ns)
        samples.append(Sample(f"{cls}/{image.name}", number[cls], *place))
    samples.sort(key=lambda sample: (sample.label, sample.name))
    return Split(name, used, numbers_of(used, classes), samples)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _check(
    folder: Path, path: Path, labels: dict[str, str], stems: set[str], classes: list[str]
) -> list[str]:
    """The classes of the table, sorted. Raises UserError unless all fits."""
    for what, those in (
        ("no label for", stems - set(labels)),
        ("no image of", set(labels) - stems),
    ):
        if those:
            raise UserError(
                f"--val-labels ({path}): there is {what} {unknown_names(sorted(those), [])} in "
                f"{folder}; give the table and the images of one release"
            )
    used = sorted(set(labels.values()))
    unknown = [one for one in used if one not in set(classes)]
    if unknown:
        raise UserError(
            f"--val-labels ({path}): holds classes that the training split lacks: "
            f"{unknown_names(unknown, classes)}; give the table of this data set"
        )
    return used


def _find(folder: Path) -> Path:
    for above in [folder, *folder.parents][: _LEVELS_UP + 1]:
        if (above / TABLE).is_file():
            return above / TABLE
    raise UserError(
        f"SRC ({folder}): holds images and no class folders; put them into one folder per class, "
        f"or give the table of their classes with --val-labels (Kaggle's is {TABLE})"
    )


def _read(path: Path) -> dict[str, str]:
    """The class of each image, by its name without suffix."""
    labels: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in list(csv.reader(file))[1:]:
                labels[row[0]] = row[1].split()[0]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError(
            f"--val-labels ({path}): cannot be read ({error}); give a table of image names and "
            f"classes (ImageId,PredictionString), as Kaggle's {TABLE}"
        ) from None
    return labels

"""Where samples come from: a folder of class folders, and ImageNet's own archives.

Reads no image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnet_dist.data.index import scan
from resnet_dist.errors import UserError
from resnet_dist.prepare import kaggle
from resnet_dist.prepare.devkit import read_validation_classes
from resnet_dist.prepare.samples import Sample, Split, numbers_of, refuse_twice
from resnet_dist.prepare.tar_reader import Member, Region, list_members, open_region
from resnet_dist.system.names import unknown_names

_NUM_LISTING = 16  # threads: network storage answers late
_CLASS_ARCHIVE = re.compile(r"[A-Za-z0-9_-]+\.tar")  # the shards' entries begin with the class
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass(frozen=True)
class Expected:
    """Counts that ImageNet's archives are checked against."""

    train: int = 1_281_167
    val: int = 50_000
    classes: int = 1_000


def read_folder(
    folder: Path, split_names: Sequence[str], val_labels: Path | None = None
) -> list[Split]:
    """Splits `folder/<name>`, each a folder of class folders, or of images whose classes a table
    says (`val_labels`, or Kaggle's beside the data). Raises UserError if one is not."""
    folder = kaggle.folder_of_splits(folder)
    splits: list[Split] = []
    for name in split_names:
        if not (folder / name).is_dir():
            raise UserError(
                f"SRC ({folder}): lacks the folder {name!r}; give a folder with one folder per "
                f"split and one sub-folder per class in each, or name the splits with --splits"
            )
        if splits and kaggle.is_flat(folder / name):
            splits.append(kaggle.read_flat(folder / name, name, val_labels, splits[0].classes))
        else:
            splits.append(_read_split(folder, name, splits[0] if splits else None))
    return splits


def _read_split(folder: Path, name: str, first: Split | None) -> Split:
    """A folder of class folders, all of them among those of the first split."""
    classes = scan.list_classes(folder / name)
    with ThreadPoolExecutor(_NUM_LISTING) as pool:
        found = list(pool.map(partial(_list_class, folder / name), range(len(classes)), classes))
    samples = [sample for of_class, _ in found for sample in of_class]
    left_out = scan.outside_classes(folder / name)
    for _, of_class in found:
        left_out.update(of_class)
    known = classes if first is None else first.classes
    unknown = [one for one in classes if one not in set(known)]
    if first is not None and unknown:
        raise UserError(
            f"SRC ({folder}): the split {name!r} holds classes that {first.name!r} lacks: "
            f"{unknown_names(unknown, known)}; rename or remove them, or add them there"
        )
    return Split(name, classes, numbers_of(classes, known), samples, dict(left_out))


def _list_class(folder: Path, label: int, name: str) -> tuple[list[Sample], dict[str, int]]:
    samples = []
    listing = scan.list_class(folder, name)
    for path in listing.files:
        try:
            status = os.stat(f"{folder}/{path}")  # noqa: PTH116 (strings, not Paths: speed)
        except OSError as error:
            raise UserError(
                f"SRC ({folder}/{path}): cannot be read ({error.strerror}); mend or remove it"
            ) from None
        samples.append(
            Sample(path, label, f"{folder}/{path}", 0, status.st_size, status.st_mtime_ns)
        )
    return samples, listing.left_out


def read_imagenet(train_tar: Path, val_tar: Path, devkit: Path, expected: Expected) -> list[Split]:
    """ILSVRC2012's training archive (a tar of one tar per class), validation archive (a tar of
    images) and development kit (their labels), read where they are.

    Raises UserError if one is damaged, holds something else, or has other counts than expected.
    """
    val_classes = read_validation_classes(devkit)
    train = _read_train(train_tar)
    _check_count("--train-tar", train_tar, len(train.classes), expected.classes, "classes")
    _check_count("--train-tar", train_tar, len(train.samples), expected.train, "images")
    val = _read_val(val_tar, val_classes, train.classes)
    _check_count("--val-tar", val_tar, len(val.samples), expected.val, "images")
    return [train, val]


def _check_count(option: str, path: Path, found: int, expected: int, what: str) -> None:
    if found != expected:
        raise UserError(
            f"{option} ({path}): holds {found} {what}, not {expected}; compare the archive's size "
            f"and checksum with the publisher's and fetch it again"
        )


def _read_train(path: Path) -> Split:
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    with open_region(path, "--train-tar") as outer:
        archives = sorted(list_members(outer), key=lambda one: one.name.removesuffix(".tar"))
        for member in archives:
            if not _CLASS_ARCHIVE.fullmatch(member.name):
                raise UserError(
                    f"--train-tar ({path}): the member {member.name!r} is no tar of a class; give "
                    f"ILSVRC2012_img_train.tar"
                )
        classes = [member.name.removesuffix(".tar") for member in archives]

        def read_class(label: int) -> list[Sample]:
            start = archives[label].offset
            images = sorted(_images(outer.part(archives[label])), key=lambda one: one.name)
            return [
                Sample(
                    f"{classes[label]}/{one.name}",
                    label,
                    str(path),
                    start + one.offset,
                    one.length,
                    stamp,
                )
                for one in images
            ]

        with ThreadPoolExecutor(_NUM_LISTING) as pool:
            found = list(pool.map(read_class, range(len(classes))))
    samples = [sample for of_class in found for sample in of_class]
    refuse_twice("--train-tar", path, samples)
    return Split("train", classes, list(range(len(classes))), samples)


def _images(region: Region) -> Iterator[Member]:
    for member in list_members(region):
        if "/" in member.name or not member.name.lower().endswith(scan.IMAGE_SUFFIXES):
            raise UserError(
                f"{region.name}: the member {member.name!r} is no image of a class; give the "
                f"archive as it is published"
            )
        yield member


def _read_val(path: Path, classes_of_images: list[str], train_classes: list[str]) -> Split:
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    used = sorted(set(classes_of_images))
    unknown = set(used) - set(train_classes)
    if unknown:
        raise UserError(
            f"--devkit: gives validation images the classes {', '.join(sorted(unknown)[:5])}, "
            f"which the training archive lacks; use the files of one release"
        )
    labels = {name: label for label, name in enumerate(used)}
    samples = []
    with open_region(path, "--val-tar") as region:
        for member in list_members(region):
            match = _VAL_NAME.fullmatch(member.name)
            if match is None or not 1 <= int(match[1]) <= len(classes_of_images):
                raise UserError(
                    f"--val-tar ({path}): the member {member.name!r} is none of the "
                    f"{len(classes_of_images)} images that the devkit has labels for; give "
                    f"ILSVRC2012_img_val.tar"
                )
            wnid = classes_of_images[int(match[1]) - 1]
            name = f"{wnid}/{member.name}"
            samples.append(
                Sample(name, labels[wnid], str(path), member.offset, member.length, stamp)
            )
    samples.sort(key=lambda sample: (sample.label, sample.name))
    refuse_twice("--val-tar", path, samples)
    return Split("val", used, numbers_of(used, train_classes), samples)

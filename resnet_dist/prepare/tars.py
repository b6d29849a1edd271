"""Tar archives of others, read where they are: WebDataset shards, and flat ones as on Hugging Face.

The class of an image is, in this order: what `KEY.cls` beside it holds; `label` or `cls` of
`KEY.json`; the last WordNet id (n01440764) in its name; the folder that it lies in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.data.index import scan
from resnet_dist.errors import UserError
from resnet_dist.prepare.samples import Sample, Split, numbers_of, refuse_twice
from resnet_dist.prepare.tar_reader import Region, list_members, open_region
from resnet_dist.system.names import unknown_names

_NUM_LISTING = 16
_WORDNET_ID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")
_MOST_LABEL_BYTES = 1 << 20
_LABEL_KEYS = ("label", "cls")


@dataclass(frozen=True)
class _Found:
    """An image in an archive, and what is known of its class."""

    name: str
    file: str
    offset: int
    length: int
    stamp: int
    number: int | None
    text: str | None
    """WordNet id or folder."""


def read_tars(train: Sequence[Path], val: Sequence[Path]) -> list[Split]:
    """Both splits. Raises UserError for archives that are damaged, or images without a class."""
    found = {"train": _list("--train", train), "val": _list("--val", val)}
    names = _names_of_numbers([*found["train"], *found["val"]])
    splits: list[Split] = []
    for name, images in found.items():
        of_each = [_class_of(one, names) for one in images]
        classes = sorted(set(of_each))
        known = splits[0].classes if splits else classes
        unknown = [one for one in classes if one not in set(known)]
        if unknown:
            raise UserError(
                f"--val: holds classes that the training archives lack: "
                f"{unknown_names(unknown, known)}; give the archives of one release"
            )
        labels = {one: label for label, one in enumerate(classes)}
        samples = [
            Sample(
                f"{cls}/{one.name.removeprefix(f'{cls}/')}",
                labels[cls],
                one.file,
                one.offset,
                one.length,
                one.stamp,
            )
            for cls, one in zip(of_each, images, strict=True)
        ]
        samples.sort(key=lambda sample: (sample.label, sample.name))
        refuse_twice(f"--{name}", Path(samples[0].file).parent, samples)
        splits.append(Split(name, classes, numbers_of(classes, known), samples))
    return splits


def _list(option: str, paths: Sequence[Path]) -> list[_Found]:
    with ThreadPoolExecutor(_NUM_LISTING) as pool:
        parts = list(pool.map(lambda path: list(_images(option, path)), sorted(paths)))
    return [one for part in parts for one in part]


def _images(option: str, path: Path) -> Iterator[_Found]:
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    with open_region(path, option) as region:
        members = {member.name: member for member in list_members(region)}
        num_images = 0
        for name, member in members.items():
            if not name.lower().endswith(scan.IMAGE_SUFFIXES):
                continue
            num_images += 1
            # As WebDataset has it: the key ends at the first dot of the last part.
            folder, slash, last = name.rpartition("/")
            key = f"{folder}{slash}{last.partition('.')[0]}"
            number = None
            for suffix, read in ((".cls", _number), (".json", _number_in_json)):
                beside = members.get(f"{key}{suffix}")
                if beside is not None and number is None and beside.length < _MOST_LABEL_BYTES:
                    content = region.read(beside.offset, beside.length)
                    number = read(region, beside.name, content)
            ids = _WORDNET_ID.findall(name)
            text = ids[-1] if ids else folder.partition("/")[0] or None
            if number is None and text is None:
                raise UserError(
                    f"{region.name}: nothing says the class of {name!r} (no .cls or .json beside "
                    f"it, no WordNet id or folder in its name); give archives that do"
                )
            yield _Found(name, str(path), member.offset, member.length, stamp, number, text)
    if not num_images:
        raise UserError(f"{option} ({path}): holds no image; give archives of images")


def _number(region: Region, name: str, content: bytes) -> int:
    text = content.strip()
    if not text.isdigit() or len(text) > 9:
        raise UserError(f"{region.name}: {name!r} holds no number of a class")
    return int(text)


def _number_in_json(region: Region, name: str, content: bytes) -> int | None:
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{region.name}: {name!r} holds no JSON") from None
    values = [loaded.get(key) for key in _LABEL_KEYS] if isinstance(loaded, dict) else []
    return next((one for one in values if type(one) is int and one >= 0), None)


def _names_of_numbers(images: Sequence[_Found]) -> dict[int, str]:
    """Names of classes by number, if those of images tell them and never contradict each other."""
    names: dict[int, str] = {}
    for one in images:
        if one.number is None or one.text is None:
            continue
        if names.setdefault(one.number, one.text) != one.text:
            return {}
    return names if len(set(names.values())) == len(names) else {}


def _class_of(image: _Found, names: dict[int, str]) -> str:
    if image.number is None:
        assert image.text is not None
        return image.text
    return names.get(image.number, f"{image.number:04d}")

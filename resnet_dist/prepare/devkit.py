"""The labels of ImageNet's validation images, from the development kit (ILSVRC2012, task 1 and 2).

The kit's ground truth holds a number for each image in turn. Which WordNet id (the name of a class
folder) a number stands for, the kit says in a MATLAB file; `resnet_dist.data.imagenet`
says the same, one `ILSVRC2012_ID wnid` per line.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from pathlib import Path

from resnet_dist.data.imagenet import read_class_ids
from resnet_dist.errors import UserError
from resnet_dist.prepare.tar_reader import bytes_region, list_members

GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_NUM_IMAGES, _NUM_PER_CLASS = 50_000, 50
_MOST_BYTES = 256 << 20  # unpacked; the kit has 10 MB
_REMEDY = "give ILSVRC2012_devkit_t12.tar.gz or the folder that it unpacks to"


def read_validation_classes(devkit: Path) -> list[str]:
    """The WordNet id of validation image 1, 2, ... from the kit, an archive or a folder.

    Raises UserError if it is not there or damaged.
    """
    content = _from_folder(devkit) if devkit.is_dir() else _from_archive(devkit)
    wnids = read_class_ids()
    classes = []
    for number, line in enumerate(content.decode("ascii", "replace").split(), start=1):
        if not line.isdigit() or int(line) not in wnids:
            raise UserError(
                f"--devkit ({devkit}): line {number} of {GROUND_TRUTH} ({line!r}) is no class, "
                f"1 to {len(wnids)}; {_REMEDY}"
            )
        classes.append(wnids[int(line)])
    uneven = [wnid for wnid, count in Counter(classes).items() if count != _NUM_PER_CLASS]
    if len(classes) == _NUM_IMAGES and uneven:
        raise UserError(
            f"--devkit ({devkit}): {GROUND_TRUTH} does not give each class {_NUM_PER_CLASS} "
            f"images (not {uneven[0]}): it is damaged; {_REMEDY}"
        )
    return classes


def _from_folder(devkit: Path) -> bytes:
    for path in (devkit / GROUND_TRUTH, *sorted(devkit.glob(f"*/{GROUND_TRUTH}"))):
        if path.is_file():
            return path.read_bytes()
    raise UserError(f"--devkit ({devkit}): holds no {GROUND_TRUTH}; {_REMEDY}")


def _from_archive(devkit: Path) -> bytes:
    try:
        with devkit.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(devkit) if is_gzip else devkit.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--devkit ({devkit}): cannot be read ({error}); {_REMEDY}") from None
    region = bytes_region(content, f"--devkit ({devkit})")
    for member in list_members(region):
        if member.name == GROUND_TRUTH or member.name.endswith(f"/{GROUND_TRUTH}"):
            return region.read(member.offset, member.length)
    raise UserError(f"--devkit ({devkit}): holds no {GROUND_TRUTH}; {_REMEDY}")

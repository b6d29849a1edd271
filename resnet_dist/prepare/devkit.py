"""The labels of ImageNet's validation images, from the development kit (ILSVRC2012, task 1 and 2).

`ILSVRC2012_validation_ground_truth.txt` holds a number for each image in turn; `meta.mat` says
which WordNet id (the name of a class folder) a number stands for.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from resnet_dist.errors import UserError
from resnet_dist.prepare.mat_file import read_struct_array
from resnet_dist.prepare.tar_reader import bytes_region, list_members

GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"
_MOST_BYTES = 256 << 20  # unpacked; the kit has 10 MB
_REMEDY = "give ILSVRC2012_devkit_t12.tar.gz or the folder that it unpacks to"


def read_validation_classes(devkit: Path) -> list[str]:
    """The WordNet id of validation image 1, 2, ... from the kit, an archive or a folder.

    Raises UserError if it is not there, damaged or incomplete.
    """
    files = _from_folder(devkit) if devkit.is_dir() else _from_archive(devkit)
    try:
        rows = read_struct_array(files[META], "synsets")
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--devkit ({devkit}): {META} cannot be read ({error}); {_REMEDY}"
        ) from None
    classes = []
    lines = files[GROUND_TRUTH].decode("ascii", "replace").split()
    for number, line in enumerate(lines, start=1):
        if not line.isdigit() or int(line) not in wnids:
            raise UserError(
                f"--devkit ({devkit}): line {number} of {GROUND_TRUTH} ({line!r}) is no class of "
                f"{META}; {_REMEDY}"
            )
        classes.append(wnids[int(line)])
    return classes


def _from_folder(devkit: Path) -> dict[str, bytes]:
    found = {}
    for name in (GROUND_TRUTH, META):
        candidates = [devkit / name, *sorted(devkit.glob(f"*/{name}"))]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise UserError(f"--devkit ({devkit}): holds no {name}; {_REMEDY}")
        found[name] = path.read_bytes()
    return found


def _from_archive(devkit: Path) -> dict[str, bytes]:
    try:
        with devkit.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(devkit) if is_gzip else devkit.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--devkit ({devkit}): cannot be read ({error}); {_REMEDY}") from None
    region = bytes_region(content, f"--devkit ({devkit})")
    found = {}
    for member in list_members(region):
        for name in (GROUND_TRUTH, META):
            if member.name == name or member.name.endswith(f"/{name}"):
                found[name] = region.read(member.offset, member.length)
    for name in (GROUND_TRUTH, META):
        if name not in found:
            raise UserError(f"--devkit ({devkit}): holds no {name}; {_REMEDY}")
    return found

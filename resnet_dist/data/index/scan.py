"""Reading a folder of class folders: names, and sizes from image headers.

Owns which files count as samples and in which order (sorted classes, then sorted relative paths,
as torchvision's ImageFolder), and what is an acceptable image file. Decodes no pixels and keeps
nothing: see `resnet_dist.data.index.index` for the cache.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from resnet_dist.data.read.limits import too_large
from resnet_dist.errors import UserError, printable
from resnet_dist.system import workers

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
NOT_DATA = ("@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN")
"""Folders that storage and archivers put beside the data: thumbnails, what was deleted."""
_CHUNK = 256
_MAX_NAMED_FILES = 10
_MAX_NAMED_KINDS = 10


@dataclass(frozen=True)
class ClassListing:
    """What lies in a class folder."""

    name: str
    files: list[str]
    """Image files relative to the class folder's parent, sorted."""
    directories: dict[str, int]
    """Folders read, relative like `files`, with their mtime in ns from before they were read."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of files that are no samples, by kind: a suffix, or where they lie."""


@dataclass
class ScannedFolder:
    """The columns of an index, one entry a sample, and what tells whether they are current."""

    classes: list[str]
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    path_bytes: NDArray[np.uint8]
    path_offsets: NDArray[np.int64]
    directories: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of files that are no samples, by kind: a suffix, or where they lie."""


def say_left_out(counts: Mapping[str, int]) -> str:
    """The files that are no samples, for people: `3 .webp, 1 without a suffix`."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {printable(kind)}" for kind, count in ranked[:_MAX_NAMED_KINDS]]
    rest = sum(count for _, count in ranked[_MAX_NAMED_KINDS:])
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def left_out_note(split: str, counts: Mapping[str, int]) -> list[str]:
    """A line about the files of a split that are no samples; none if there are none."""
    if not counts:
        return []
    return [
        f"note: left out of the {split} images: {say_left_out(counts)} (samples are "
        f"{', '.join(IMAGE_SUFFIXES)} in class folders)"
    ]


def outside_classes(folder: Path) -> Counter[str]:
    """Image files beside the class folders, which belong to no class."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
    found = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    return Counter({"in no class folder": found} if found else {})


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the class folders (links to folders count, hidden ones and `NOT_DATA` do
    not).

    Raises UserError if the folder is missing, unreadable or holds no class folder.
    """
    try:
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if entry.is_dir())
            classes = sorted(name for name in names if name[0] != "." and name not in NOT_DATA)
    except NotADirectoryError:
        raise UserError(
            f"data.root ({folder}): is a file; give a folder of class folders"
        ) from None
    except OSError as error:
        raise _cannot_list(error, folder) from None
    if not classes:
        raise UserError(
            f"data.root ({folder}): holds no class folders; expected one folder for each class "
            f"with its images inside, such as {folder}/n01440764/*.JPEG (ImageNet as Kaggle or "
            f"Hugging Face give it: see `python -m resnet_dist.prepare --help`)"
        )
    return classes


def list_class(folder: Path, name: str) -> ClassListing:
    """The image files of a class folder, folders inside it included.

    Raises UserError if there are none, or if a folder cannot be read.
    """
    files: list[str] = []
    directories: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    try:
        _walk(folder, name, (files, directories, left_out), ())
    except OSError as error:
        raise _cannot_list(error, folder / name) from None
    if not files:
        others = f", only {say_left_out(left_out)}" if left_out else ""
        raise UserError(
            f"data.root ({folder / name}): the class folder holds no image "
            f"({', '.join(IMAGE_SUFFIXES)}){others}; fill it or remove it"
        )
    return ClassListing(name, sorted(files), directories, dict(left_out))


def _cannot_list(error: OSError, folder: Path) -> UserError:
    return UserError(
        f"data.root ({error.filename or folder}): the folder cannot be read ({error.strerror}); "
        f"mend its permissions or restore it"
    )


def _walk(
    folder: Path,
    relative: str,
    found: tuple[list[str], dict[str, int], Counter[str]],
    ancestors: tuple[tuple[int, int], ...],
) -> None:
    files, directories, left_out = found
    path = f"{folder}/{relative}"
    status = os.stat(path)  # noqa: PTH116 (before the listing: a later change shows)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:  # a link to a folder above
        return
    directories[relative] = status.st_mtime_ns
    with os.scandir(path) as entries:
        for entry in entries:
            name = f"{relative}/{entry.name}"
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
            if entry.name in NOT_DATA and entry.is_dir():
                left_out[f"below {entry.name}"] += sum(len(one[2]) for one in os.walk(entry.path))
            elif entry.name[0] == ".":
                if is_image and entry.is_file():
                    left_out["hidden"] += 1
            elif entry.is_dir():
                _walk(folder, name, found, (*ancestors, identity))
            elif is_image:
                files.append(name)
            else:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a str: speed)
                left_out[suffix or "without a suffix"] += 1


def digest_of_files(folder: Path, listings: list[ClassListing]) -> str:
    """Hash of every file's name, size and mtime: changes when a file is replaced in place."""
    digest = hashlib.sha256()
    for listing in listings:
        for name in listing.files:
            try:
                status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (strings, not Paths: speed)
                stamp = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            except OSError:
                stamp = f"{name}\0missing\n"
            digest.update(os.fsencode(stamp))
    return digest.hexdigest()


def scan_folder(folder: Path, *, show_progress: bool, bad_list: Path) -> ScannedFolder:
    """Read the headers of all images of a folder of class folders, in parallel.

    Raises UserError for an empty folder or class, and for files that are no readable JPEG or PNG,
    of which it names the first ten, and all in the file `bad_list`.
    """
    classes = list_classes(folder)
    directories: dict[str, int] = {}
    left_out = outside_classes(folder)
    sizes: list[NDArray[np.int64]] = []
    paths: list[bytes] = []
    counts = np.zeros(len(classes), dtype=np.int64)
    bad: list[str] = []
    num_processes = max(1, len(os.sched_getaffinity(0)))
    bar = tqdm(
        total=len(classes),
        unit="class",
        desc=f"index {folder.name}",
        leave=False,
        disable=None if show_progress else True,  # None: shown on a terminal only
    )
    with bar, workers.process_pool(num_processes, _set_up_reader) as pool:
        for chunk in _read_chunks(pool, folder, classes, num_processes):
            directories.update(chunk.directories)
            left_out.update(chunk.left_out)
            sizes.append(chunk.sizes)
            paths.append(chunk.paths)
            counts[chunk.label] += len(chunk.sizes)
            bad += chunk.bad
            bar.update(chunk.is_last)
    if bad:
        bad = [printable(one) for one in bad]
        bad_list.write_text("\n".join(bad) + "\n")
        more = f" and {len(bad) - _MAX_NAMED_FILES} more" if len(bad) > _MAX_NAMED_FILES else ""
        raise UserError(
            f"data.root ({folder}): {len(bad)} unreadable image file(s): "
            f"{', '.join(bad[:_MAX_NAMED_FILES])}{more}; replace or remove them "
            f"(all are named in {bad_list})"
        )
    table = np.concatenate(sizes)
    blob = np.frombuffer(b"".join(paths), dtype=np.uint8)
    return ScannedFolder(
        classes=classes,
        labels=np.repeat(np.arange(len(classes)), counts),
        heights=table[:, 0].astype(np.int32),
        widths=table[:, 1].astype(np.int32),
        lengths=np.ascontiguousarray(table[:, 2]),
        path_bytes=blob,
        path_offsets=np.concatenate([[0], np.cumsum(table[:, 3])]),
        directories=directories,
        left_out=dict(left_out),
    )


@dataclass(frozen=True)
class _Chunk:
    """Some consecutive files of one class, their headers read."""

    label: int
    sizes: NDArray[np.int64]
    """`[n, 4]` height, width, bytes of the file, bytes of its relative path."""
    paths: bytes
    bad: list[str]
    directories: dict[str, int]
    """Times of the class's folders, all in its first chunk."""
    left_out: dict[str, int]
    """Likewise."""
    is_last: bool


def _read_chunks(
    pool: ProcessPoolExecutor, folder: Path, classes: list[str], num_processes: int
) -> Iterator[_Chunk]:
    """Chunks in the order of the index, with a bounded number in flight."""
    waiting: deque[Future[_Chunk]] = deque()
    for label, name in enumerate(classes):
        listing = list_class(folder, name)
        once = (listing.directories, listing.left_out)
        for start in range(0, len(listing.files), _CHUNK):
            files = listing.files[start : start + _CHUNK]
            is_last = start + _CHUNK >= len(listing.files)
            waiting.append(pool.submit(_read_headers, folder, files, label, *once, is_last=is_last))
            once = ({}, {})
            while len(waiting) > 4 * num_processes:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _set_up_reader() -> None:
    warnings.simplefilter("ignore")  # Pillow's about odd but readable headers
    Image.MAX_IMAGE_PIXELS = None  # the user's own data: nothing is decoded here


def _read_headers(
    folder: Path,
    files: list[str],
    label: int,
    directories: dict[str, int],
    left_out: dict[str, int],
    *,
    is_last: bool,
) -> _Chunk:
    sizes = np.zeros((len(files), 4), dtype=np.int64)
    bad: list[str] = []
    encoded = [os.fsencode(name) for name in files]
    for row, name in enumerate(files):
        try:
            height, width, length = _read_header(f"{folder}/{name}")
            sizes[row] = (height, width, length, len(encoded[row]))
            if reason := too_large(height, width, length):
                bad.append(f"{name} ({reason})")
        except PermissionError:
            bad.append(f"{name} (no permission)")
        except UnidentifiedImageError:
            bad.append(f"{name} (not a JPEG or PNG image, or cut off in its header)")
        except Exception as error:  # Pillow's plugins raise anything on a damaged header
            bad.append(f"{name} ({type(error).__name__}: {error})")
    return _Chunk(label, sizes, b"".join(encoded), bad, directories, left_out, is_last)


def _read_header(path: str) -> tuple[int, int, int]:
    """Stored height and width (EXIF rotation ignored) and length in bytes of an image file."""
    with open(path, "rb") as file:  # noqa: PTH123 (a str, not a Path: speed)
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            raise OSError("the file is empty")
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            width, height = image.size
    return height, width, length

"""ImageNet's archives in small: a tar of tars, a tar of validation images, a development kit."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Archives:
    """The three files that are published, and what is in them."""

    train_tar: Path
    val_tar: Path
    devkit: Path
    train: dict[str, bytes]
    """Content by class/name, sorted."""
    val: dict[str, bytes]

    def arguments(self, out: Path) -> list[str]:
        """Of `python -m resnet_dist.prepare`."""
        num_classes = len({name.partition("/")[0] for name in self.train})
        return [
            "imagenet",
            f"--train-tar={self.train_tar}",
            f"--val-tar={self.val_tar}",
            f"--devkit={self.devkit}",
            f"--out={out}",
            f"--expect-train={len(self.train)}",
            f"--expect-val={len(self.val)}",
            f"--expect-classes={num_classes}",
        ]


def build_archives(
    folder: Path, images: dict[str, list[bytes]], val: Sequence[tuple[str, bytes]]
) -> Archives:
    """Archives of training images by WordNet id and of validation images (id, content).

    The classes' numbers in the kit run against the order of their names, as ImageNet's do not
    follow it either.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train: dict[str, bytes] = {}
    inner: dict[str, bytes] = {}
    for wnid, contents in images.items():
        named = {f"{wnid}_{i * 7 + 3}.JPEG": content for i, content in enumerate(contents)}
        inner[f"{wnid}.tar"] = tar_bytes(named)
        train |= {f"{wnid}/{name}": content for name, content in named.items()}
    (folder / "train.tar").write_bytes(tar_bytes(inner))
    named = {f"ILSVRC2012_val_{i:08d}.JPEG": one for i, (_, one) in enumerate(val, start=1)}
    (folder / "val.tar").write_bytes(tar_bytes(dict(reversed(named.items()))))
    wnids = sorted(images, reverse=True)
    kit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"a kit",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(wnids),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{wnids.index(wnid) + 1}\n" for wnid, _ in val
        ).encode(),
    }
    with tarfile.open(folder / "devkit.tar.gz", "w:gz") as archive:
        for name, content in kit.items():
            archive.addfile(_info(name, content), io.BytesIO(content))
    return Archives(
        folder / "train.tar",
        folder / "val.tar",
        folder / "devkit.tar.gz",
        dict(sorted(train.items())),
        dict(
            sorted(
                (f"{wnid}/{name}", content)
                for (wnid, content), name in zip(val, named, strict=True)
            )
        ),
    )


def _info(name: str, content: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info


def tar_bytes(files: dict[str, bytes], *, format: int = tarfile.GNU_FORMAT) -> bytes:
    """An uncompressed tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in files.items():
            archive.addfile(_info(name, content), io.BytesIO(content))
    return out.getvalue()


def meta_mat(wnids: Sequence[str]) -> bytes:
    """The kit's meta.mat, as MATLAB writes it: `synsets`, numbered from 1 (MAT level 5)."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "children")
    parts = [_header(2, (len(wnids), 1), "synsets"), _element(5, struct.pack("<i", 16))]
    parts.append(_element(1, b"".join(name.encode().ljust(16, b"\0") for name in fields)))
    for number, wnid in enumerate(wnids, start=1):
        parts.append(_matrix(_header(6, (1, 1), ""), _element(2, bytes([number]))))
        parts.append(_text(wnid))
        parts.append(_text(f"the words of {wnid}"))
        parts.append(_matrix(_header(6, (0, 0), ""), _element(9, b"")))
    whole = _matrix(*parts)
    packed = zlib.compress(whole)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return head + struct.pack("<II", 15, len(packed)) + packed


def _element(kind: int, data: bytes) -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _header(array_class: int, shape: tuple[int, int], name: str) -> bytes:
    flags = _element(6, struct.pack("<II", array_class, 0))
    return flags + _element(5, struct.pack("<ii", *shape)) + _element(1, name.encode())


def _matrix(*parts: bytes) -> bytes:
    return _element(14, b"".join(parts))


def _text(text: str) -> bytes:
    return _matrix(_header(4, (1, len(text)), ""), _element(4, text.encode("utf-16-le")))

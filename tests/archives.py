"""ImageNet's archives in small: a tar of tars, a tar of validation images, a development kit."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.prepare.devkit import read_class_ids

WNIDS = ["n01440764", "n01443537", "n02100735", "n03000134"]
"""Classes of ImageNet, sorted."""


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
    """Archives of training images by WordNet id and of validation images (id, content)."""
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
    numbers = {wnid: number for number, wnid in read_class_ids().items()}
    kit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"a kit",
        "ILSVRC2012_devkit_t12/data/meta.mat": b"not read",
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{numbers[wnid]}\n" for wnid, _ in val
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

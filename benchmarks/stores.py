"""Images per second from packed shards, against other packed formats and readers.

    python benchmarks/stores.py --images DIR [--rounds 7] [--seconds 4] [--loaders dali_shards,...]

DIR is a folder of class folders; it is listed many times over and packed by resnet_dist.prepare.
What each loader does, and how they take turns, is as in benchmarks/loaders.py. Those of packages
that are not installed (webdataset, streaming) are left out.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loaders import (
    LOADERS,
    Setup,
    Start,
    dali_reading,
    ours,
    parse_arguments,
    print_tables,
    print_versions,
    repeated,
    take_turns,
    v2_transform,
)
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image

BARS = [
    ("dali_shards", "dali_native", 0.95),
    ("dali_shards", "dali_webdataset", 0.95),
    ("dali", "dali_native", 0.95),
    ("dali", "dali_webdataset", 0.95),
    ("torch_shards", "torchvision_v2", 1.0),
    ("torch_shards", "webdataset", 1.0),
    ("torch_shards", "streaming", 1.0),
    ("torch_shards", "dali_webdataset", 1.0),
    ("torch_shards", "torch", 0.0),
]


def packed(setup: Setup) -> Setup:
    """The same data in shards."""
    return Setup(setup.root / "packed", setup.batch_size, setup.num_workers)


def shards(setup: Setup) -> list[str]:
    """The tar files."""
    return sorted(str(path) for path in (setup.root / "packed" / "train").glob("*.tar"))


def dali_webdataset(setup: Setup) -> Iterator[torch.Tensor]:
    """DALI's reader of such shards, with its own shuffling and crops."""
    return dali_reading(
        setup,
        lambda fn: fn.readers.webdataset(
            paths=shards(setup),
            ext=["jpg;jpeg;png", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=1024,
        ),
    )


def decode(encoded: bytes) -> torch.Tensor:
    """torchvision's decoder."""
    data = torch.from_numpy(np.frombuffer(encoded, dtype=np.uint8).copy())
    image: torch.Tensor = decode_image(data, mode=ImageReadMode.RGB)
    return image


def webdataset(setup: Setup) -> Iterator[torch.Tensor]:
    """The webdataset package, shuffled in a buffer, under torch's DataLoader."""
    import webdataset as wds

    transform = v2_transform([])

    def finish(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return transform(decode(sample["jpg"])), int(sample["cls"])

    dataset = wds.WebDataset(shards(setup), shardshuffle=100, resampled=True, empty_check=False)
    dataset = dataset.shuffle(1000).map(finish).batched(setup.batch_size)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=setup.num_workers)
    for images, _ in loader:
        yield images


def write_streaming(setup: Setup) -> None:
    """The same samples in mosaicml-streaming's format."""
    from streaming import MDSWriter

    folder = setup.root / "mds"
    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "label": "int"}) as writer:
        for label, path in enumerate(sorted((setup.root / "train").iterdir())):
            for image in sorted(path.iterdir()):
                writer.write({"jpg": image.read_bytes(), "label": label})


def streaming(setup: Setup) -> Iterator[torch.Tensor]:
    """mosaicml-streaming from the local disk, under torch's DataLoader."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    transform = v2_transform([])

    class Images(StreamingDataset):  # type: ignore[misc]
        """Samples by number."""

        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(at)
            return transform(decode(sample["jpg"])), sample["label"]

    clean_stale_shared_memory()
    dataset = Images(local=str(setup.root / "mds"), shuffle=True, batch_size=setup.batch_size)
    loader = DataLoader(
        dataset, batch_size=setup.batch_size, num_workers=setup.num_workers, drop_last=True
    )
    while True:
        for images, _ in loader:
            yield images


def on_packed(name: str) -> Callable[[Setup], Iterator[torch.Tensor]]:
    """Ours, from shards."""
    return lambda setup: ours(packed(setup), name)


STORES: dict[str, Start] = {
    "dali_native": LOADERS["dali_native"],
    "dali_webdataset": dali_webdataset,
    "dali": LOADERS["dali"],
    "dali_shards": on_packed("dali"),
    "torch": LOADERS["torch"],
    "torch_shards": on_packed("torch"),
    "torchvision_v2": LOADERS["torchvision_v2"],
    "webdataset": webdataset,
    "streaming": streaming,
}


def pack(root: Path) -> None:
    """With resnet_dist.prepare; kept as they are, since all others read them so."""
    command = [sys.executable, "-m", "resnet_dist.prepare", "folder", str(root), "--splits=train"]
    subprocess.run([*command, "--exact", "--out", str(root / "packed")], check=True)


def main() -> None:
    """Pack, measure and print."""
    args = parse_arguments(__doc__ or "", list(STORES))
    names = args.loaders.split(",")
    for name in ("webdataset", "streaming"):
        if name in names and importlib.util.find_spec(name) is None:
            print(f"{name}: not installed, left out", file=sys.stderr)
            names.remove(name)
    with repeated(args.images, at_least=10_000) as root:
        setup = Setup(root, args.batch_size, args.num_workers)
        print_versions(setup)
        pack(root)
        if "streaming" in names:
            write_streaming(setup)
        chosen = {name: STORES[name] for name in names}
        rates = take_turns(chosen, setup, rounds=args.rounds, seconds=args.seconds)
    print_tables(rates, BARS)


if __name__ == "__main__":
    main()

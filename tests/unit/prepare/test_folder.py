"""Packing a folder of class folders: what is stored, what is refused, and what is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_dist.data.index.packed import read_manifest
from resnet_dist.data.read.store import open_store
from resnet_dist.prepare import pack
from resnet_dist.prepare.tar_reader import bytes_region, list_members
from tests.unit.prepare.packing import Prepare, open_split

WriteImage = Callable[..., None]


def test_a_packed_split_has_the_index_of_the_folder(root: Path, prepare: Prepare) -> None:
    out = root.parent / "out"
    assert prepare("folder", str(root), "--out", str(out), "--samples-per-shard=5")[0] == 0
    for split in ("train", "val"):
        folder, packed = open_split(root, split), open_split(out, split)
        assert packed.fingerprint == folder.fingerprint
        assert packed.classes == folder.classes
        for name in ("labels", "heights", "widths", "lengths", "path_bytes", "path_offsets"):
            np.testing.assert_array_equal(getattr(packed, name), getattr(folder, name))
        ids = np.array([2, 0, 2, len(folder) - 1])
        for left, right in zip(
            open_store(packed).read(ids), open_store(folder).read(ids), strict=True
        ):
            np.testing.assert_array_equal(left, right)
    assert packed.path(0).startswith(f"{out}/val/val-0000")
    assert packed.path(0).endswith(".tar:ant/000.jpg")


def test_what_is_reencoded_has_another_fingerprint(
    root: Path, prepare: Prepare, write_image: WriteImage
) -> None:
    write_image(root / "train/ant/cmyk.jpg", 41, 43, seed=5, mode="CMYK")
    for name, options in (("exact", ["--exact"]), ("plain", []), ("small", ["--max-side=40"])):
        code, said = prepare("folder", str(root), "--out", str(root.parent / name), *options)
        assert code == 0
        assert ("re-encoded" in said) == (name != "exact")
    folder, exact, plain, small = (
        open_split(path) for path in (root, *(root.parent / n for n in ("exact", "plain", "small")))
    )
    assert exact.fingerprint == folder.fingerprint
    assert len({folder.fingerprint, plain.fingerprint, small.fingerprint}) == 3
    manifest = read_manifest(root.parent / "plain/train")
    assert list(manifest.reencoded) == ["ant/cmyk.jpg"]
    assert max(small.heights.max(), small.widths.max()) == 40
    assert prepare("verify", str(root.parent / "small"))[0] == 0


def damage(root: Path) -> None:
    """Three images that cannot be used, in different ways."""
    one, two = root / "train/bee/003.jpg", root / "train/cat/001.jpg"
    one.write_bytes(one.read_bytes()[:-100])
    two.write_bytes(two.read_bytes()[:-60] + b"\xff\xd9")
    (root / "train/ant/zz.jpg").write_bytes(b"no image")


def test_bad_images_are_all_named_and_the_good_shards_kept(
    root: Path, prepare: Prepare, image_root: Path
) -> None:
    damage(root)
    arguments = ["folder", str(root), "--out", str(root.parent / "out"), "--samples-per-shard=3"]
    code, said = prepare(*arguments)
    assert code == 2
    assert "train: 3 of 28 images cannot be used" in said
    assert "bee/003.jpg: truncated or damaged (Image is incomplete or truncated)" in said
    assert "cat/001.jpg: damaged inside (Corrupt JPEG data: premature end" in said
    assert "ant/zz.jpg: not a JPEG or PNG image" in said
    assert "--skip-bad" in said
    assert "--keep-damaged" in said
    assert not (root.parent / "out/train/dataset.json").exists()
    (root / "train/ant/zz.jpg").unlink()
    for name in ("bee/003.jpg", "cat/001.jpg"):  # mended, as the sentence says
        shutil.copy2(image_root / "train" / name, root / "train" / name)
    code, said = prepare(*arguments)
    assert code == 0
    assert open_split(root.parent / "out").fingerprint == open_split(root).fingerprint


def test_bad_images_are_left_out_or_kept(root: Path, prepare: Prepare) -> None:
    whole = open_split(root)
    damage(root)
    arguments = ["folder", str(root), "--samples-per-shard=3", "--out"]
    out = root.parent / "out"
    assert prepare(*arguments, str(out))[0] == 2
    code, said = prepare(*arguments, str(out), "--skip-bad")
    assert code == 0
    assert "25 images" in said
    assert "3 left out" in said
    assert ", 0 shard(s) kept" not in said.splitlines()[0]  # from the first call
    manifest = read_manifest(out / "train")
    assert list(manifest.skipped) == ["ant/zz.jpg", "bee/003.jpg", "cat/001.jpg"]
    index = open_split(out)
    assert [i for i in range(27) if i not in (12, 19)] == [
        next(k for k in range(27) if whole.path(k).endswith(index.path(i).partition(":")[2]))
        for i in range(25)
    ]
    assert prepare("verify", str(out))[0] == 0
    (root / "train/bee/003.jpg").unlink()
    (root / "train/ant/zz.jpg").unlink()
    code, said = prepare(*arguments, str(root.parent / "kept"), "--keep-damaged")
    assert code == 0
    assert "1 damaged inside but kept" in said
    assert len(open_split(root.parent / "kept")) == 26


def test_another_data_set_in_the_folder_is_left_alone(root: Path, prepare: Prepare) -> None:
    out = root.parent / "out"
    assert prepare("folder", str(root), f"--out={out}")[0] == 0
    (root / "train/ant/000.jpg").unlink()
    for options in ([], ["--max-side=30"]):
        code, said = prepare("folder", str(root), f"--out={out}", *options)
        assert code == 2
        assert "holds a data set of other samples or options" in said
    foreign = root.parent / "foreign/train"
    foreign.mkdir(parents=True)
    (foreign / "mine.tar").write_bytes(b"precious")
    code, said = prepare("folder", str(root), f"--out={foreign.parent}")
    assert code == 2
    assert "holds mine.tar, which is none of its shards" in said
    assert (foreign / "mine.tar").read_bytes() == b"precious"


def test_wrong_sources(root: Path, prepare: Prepare) -> None:
    out = f"--out={root.parent / 'out'}"
    code, said = prepare("folder", str(root / "train"), out)
    assert code == 2
    assert "lacks the folder 'train'" in said
    shutil.copytree(root / "val/ant", root / "val/wasp")
    code, said = prepare("folder", str(root), out)
    assert code == 2
    assert "the split 'val' holds classes that 'train' lacks: wasp" in said
    code, said = prepare("folder", str(root), out, "--splits=val")
    assert code == 0
    code, said = prepare("verify", str(root))
    assert code == 2
    assert "holds no prepared data set" in said


def test_too_little_room(root: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda _: usage)  # a mock: no full disk
    code, said = prepare("folder", str(root), f"--out={root.parent / 'out'}")
    assert code == 2
    assert "GB are needed and 0.0 GB are free" in said


def test_odd_names(root: Path, prepare: Prepare) -> None:
    source = (root / "train/ant/000.jpg").read_bytes()
    odd = [
        "a.b.jpg",
        "a.c.jpg",
        "a.jpg",
        "a.png",
        "a-2.jpg",
        "\u00e9 \u4e2d.jpg",
        "x" * 180 + ".jpg",
    ]
    for name in odd:
        (root / "train/ant" / name).write_bytes(source)
    (root / "train/bee/deep.er").mkdir()
    (root / "train/bee/deep.er/one.jpg").write_bytes(source)
    with open(os.fsencode(root) + b"/train/cat/\xff\xfe.jpg", "wb") as file:  # noqa: PTH123
        file.write(source)
    out = root.parent / "out"
    code, said = prepare("folder", str(root), f"--out={out}", "--splits=train")
    assert code == 0, said
    assert open_split(out).fingerprint == open_split(root).fingerprint
    assert prepare("verify", str(out))[0] == 0
    region = bytes_region((out / "train/train-00000.tar").read_bytes(), "shard")
    names = [member.name for member in list_members(region)]
    keys = [name.rpartition("/")[2].partition(".")[0] for name in names]
    folders = [name.rpartition("/")[0] for name in names]
    pairs = list(zip(folders, keys, strict=True))
    assert pairs[::2] == pairs[1::2]
    assert len(set(pairs)) == len(names) // 2 == 27 + len(odd) + 2


def test_a_shard_of_one_image_decodes_like_the_file(root: Path, prepare: Prepare) -> None:
    out = root.parent / "out"
    assert prepare("folder", str(root), f"--out={out}", "--samples-per-shard=1")[0] == 0
    assert len(list((out / "train").glob("*.tar"))) == 27
    (one,) = open_store(open_split(out), num_threads=1).read(np.array([13]))
    assert one.flags["C_CONTIGUOUS"]
    assert torch.from_numpy(one).dtype == torch.uint8


def test_another_reader_of_webdataset_reads_the_shards(root: Path, prepare: Prepare) -> None:
    """DALI's own: every image with its label, without our index."""
    from nvidia import dali

    (root / "train/ant/000.jpg").rename(root / "train/ant/with.a.dot and a space.jpg")
    out = root.parent / "out"
    assert prepare("folder", str(root), f"--out={out}", "--samples-per-shard=10")[0] == 0
    pipeline = dali.Pipeline(batch_size=27, num_threads=1, device_id=None)
    with pipeline:
        shards = sorted(str(path) for path in (out / "train").glob("*.tar"))
        pipeline.set_outputs(*dali.fn.readers.webdataset(paths=shards, ext=["jpg", "cls"]))
    images, labels = pipeline.run()
    found = sorted(
        (int(bytes(np.asarray(labels.at(i)))), bytes(np.asarray(images.at(i)))) for i in range(27)
    )
    index = open_split(root)
    expected = zip(index.labels.tolist(), map(Path, map(index.path, range(27))), strict=True)
    assert found == sorted((label, path.read_bytes()) for label, path in expected)

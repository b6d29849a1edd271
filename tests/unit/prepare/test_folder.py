"""Packing a folder of class folders: what is stored, what is refused, and what is kept."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_dist.config import DataConfig
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.index.packed import read_manifest
from resnet_dist.data.read.store import open_store
from resnet_dist.prepare import pack
from resnet_dist.prepare.__main__ import main
from resnet_dist.prepare.check import BadImageError, Checked, Options, check
from resnet_dist.prepare.tar_reader import bytes_region, list_members
from tests.archives import tar_bytes

Prepare = Callable[..., tuple[int, str]]
WriteImage = Callable[..., None]


@pytest.fixture
def prepare(capfd: pytest.CaptureFixture[str]) -> Prepare:
    """Calls the entry point: (exit code, what it said)."""

    def call(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        said = capfd.readouterr()
        return code, said.err if code else said.out

    return call


@pytest.fixture
def root(tmp_path: Path, image_root: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(image_root, tmp_path / "data"))


def open_split(root: Path, split: str = "train") -> Index:
    data = DataConfig(root=str(root), cache_dir=str(root.parent / "cache"))
    return open_index(data, split, build=True, show_progress=False)


def jpeg(height: int = 64, width: int = 96, *, mode: str = "RGB", seed: int = 0) -> bytes:
    """A JPEG with detail everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, "JPEG", quality=90)
    return out.getvalue()


def examine(content: bytes, name: str = "x.jpg", **options: object) -> Checked:
    return check(np.frombuffer(bytearray(content), np.uint8), name, Options(**options))


def test_a_whole_image_is_stored_as_it_is() -> None:
    content = jpeg()
    for name in ("x.jpg", "x.JPEG", "x.png"):  # a JPEG is one, whatever it is called
        checked = examine(content, name)
        assert checked == Checked(content, 64, 96, "jpg", False, None)
    assert examine(content + b"trailing bytes").complaint is None


def test_damage_is_found() -> None:
    content = jpeg()
    for part in (content[:-2], content[: len(content) // 2], content[:200]):
        with pytest.raises(BadImageError):
            examine(part)
    for other, reason in ((b"", "empty"), (b"GIF89a" * 9, "not a JPEG"), (b"\xff\xd8xx", "header")):
        with pytest.raises(BadImageError, match=reason):
            examine(other)
    # Cut off in the middle and closed with an end mark: decodes to its full size, half of it grey.
    closed = examine(content[: len(content) // 2] + b"\xff\xd9")
    assert (closed.height, closed.width) == (64, 96)
    assert closed.complaint == "Corrupt JPEG data: premature end of data segment"


def test_damage_inside_is_found_in_most_cases() -> None:
    """Any 20 bytes of the picture's data overwritten, all else as it was."""
    content = jpeg(200, 200)
    begin = content.index(b"\xff\xda") + 20
    noticed = 0
    for start in range(begin, len(content) - 30, (len(content) - begin) // 40):
        spoiled = bytearray(content)
        spoiled[start : start + 20] = bytes(20)
        noticed += examine(bytes(spoiled)).complaint is not None
    assert noticed >= 35


def test_an_unknown_jfif_version_is_harmless_but_hides_nothing() -> None:
    content = bytearray(jpeg())
    content[content.index(b"JFIF\0") + 5] = 7
    assert examine(bytes(content)).complaint is None
    cut = bytes(content[: len(content) // 2]) + b"\xff\xd9"
    assert "premature end" in str(examine(cut).complaint)


def test_a_size_beyond_reason_is_refused_unread() -> None:
    content = bytearray(jpeg())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImageError, match=r"claims 65535x65535 pixels|exceeds limit"):
        examine(bytes(content))


def test_odd_ones_are_encoded_anew() -> None:
    cmyk = jpeg(40, 50, mode="CMYK")
    checked = examine(cmyk)
    assert checked.is_reencoded
    with Image.open(io.BytesIO(checked.content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 40))
    assert examine(cmyk, exact=True).content == cmyk
    out = io.BytesIO()
    smooth = Image.fromarray(np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8))
    smooth.convert("RGB").save(out, "PNG")
    checked = examine(out.getvalue(), "x.JPEG")
    assert (checked.suffix, checked.is_reencoded) == ("jpg", True)
    with Image.open(io.BytesIO(checked.content)) as image:
        difference = np.abs(np.asarray(image)[..., 0].astype(int) - np.asarray(smooth))
    assert difference.max() <= 4
    assert examine(out.getvalue(), "x.PNG").content == out.getvalue()  # lossless data stay so
    assert examine(out.getvalue(), "x.JPEG", exact=True).suffix == "png"


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"max_side": 48}, (32, 48)),
        ({"short_side": 32}, (32, 48)),
        ({"max_side": 60, "short_side": 16}, (16, 24)),
        ({"short_side": 64}, (64, 96)),
        ({"max_side": 500}, (64, 96)),
    ],
)
def test_shrinking(options: dict[str, int], size: tuple[int, int]) -> None:
    content = jpeg()
    checked = examine(content, **options)
    assert (checked.height, checked.width) == size
    with Image.open(io.BytesIO(checked.content)) as image:
        assert image.size == size[::-1]
    assert checked.is_reencoded == (size != (64, 96)) == (checked.content != content)
    if checked.is_reencoded:
        assert len(checked.content) > len(examine(content, quality=40, **options).content)
        gray = examine(jpeg(mode="L"), **options)
        with Image.open(io.BytesIO(gray.content)) as image:
            assert image.mode == "L"


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


def test_what_is_encoded_anew_has_another_fingerprint(
    root: Path, prepare: Prepare, write_image: WriteImage
) -> None:
    write_image(root / "train/ant/cmyk.jpg", 41, 43, seed=5, mode="CMYK")
    for name, options in (("exact", ["--exact"]), ("plain", []), ("small", ["--max-side=40"])):
        code, said = prepare("folder", str(root), "--out", str(root.parent / name), *options)
        assert code == 0
        assert ("encoded anew" in said) == (name != "exact")
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


@pytest.mark.parametrize("format", [0, 1, 2])  # ustar, GNU, pax
def test_every_kind_of_tar_is_read(format: int) -> None:
    long = "d" * 90 + "/" + "n" * 90 + ".jpg"
    files = {"a.jpg": b"one", long: b"x" * 513, "./b.jpg": b"", "c.jpg": b"y" * 512}
    if format == 2:
        files["\u4e2d" * 60 + ".jpg"] = b"pax"
    region = bytes_region(tar_bytes(files, format=format), "x")
    members = list(list_members(region))
    found = {member.name: region.read(member.offset, member.length) for member in members}
    assert found == {name.removeprefix("./"): content for name, content in files.items()}


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

"""Packing ImageNet's own archives: bytes, labels, and kills."""

from __future__ import annotations

import multiprocessing
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data.read.store import ShardStore, open_store
from resnet_dist.prepare.__main__ import main
from tests.archives import WNIDS, Archives, build_archives
from tests.launch import share_fork_server
from tests.unit.prepare.packing import Prepare, open_split, split_images


@pytest.fixture(scope="module", params=["generated", "photographs"])
def archives(
    request: pytest.FixtureRequest,
    small: Archives,
    real_images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Archives:
    if request.param == "generated":
        return small
    contents = [path.read_bytes() for path in sorted(real_images.rglob("*.JPEG"))]
    return build_archives(tmp_path_factory.mktemp("real"), *split_images(contents, WNIDS))


def shard_files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_every_sample_is_there_with_its_bytes_and_label(
    archives: Archives, tmp_path: Path, prepare: Prepare
) -> None:
    out = tmp_path / "out"
    code, said = prepare(*archives.arguments(out), "--samples-per-shard=16")
    assert code == 0, said
    assert f"train: {len(archives.train)} images of 4 classes" in said
    train = open_split(out, "train")
    val = open_split(out, "val", train.classes)
    assert train.classes == val.classes == WNIDS
    for index, expected in ((train, archives.train), (val, archives.val)):
        names = [index.path(i).partition(".tar:")[2] for i in range(len(index))]
        assert names == list(expected)  # in the order of a folder's index
        read = open_store(index).read(np.arange(len(index)))
        assert [one.tobytes() for one in read] == list(expected.values())
        assert [WNIDS[label] for label in index.labels] == [n.partition("/")[0] for n in names]
    assert prepare("verify", str(out)) == (0, "train: as it was written\nval: as it was written\n")


def test_the_shards_are_those_of_webdataset(
    small: Archives, tmp_path: Path, prepare: Prepare
) -> None:
    assert prepare(*small.arguments(tmp_path / "out"), "--samples-per-shard=10")[0] == 0
    found: dict[str, bytes] = {}
    order: list[str] = []
    for path in sorted((tmp_path / "out/val").glob("*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                assert image.name.removesuffix(".jpg") == label.name.removesuffix(".cls")
                assert (image.mtime, image.uid, image.uname, image.mode) == (0, 0, "", 0o644)
                content, cls = archive.extractfile(image), archive.extractfile(label)
                assert content is not None
                assert cls is not None
                name = image.name.replace(".jpg", ".JPEG")
                found[name] = content.read()
                order.append(name)
                assert WNIDS[int(cls.read())] == name.partition("/")[0]
    assert dict(sorted(found.items())) == small.val
    assert order != sorted(order)  # shuffled


def run_prepare(arguments: list[str]) -> None:
    share_fork_server()
    raise SystemExit(main(arguments))


def test_killed_and_called_again_the_shards_are_the_same(
    archives: Archives, tmp_path: Path, prepare: Prepare
) -> None:
    options = ["--samples-per-shard=3"]
    assert prepare(*archives.arguments(tmp_path / "whole"), *options)[0] == 0
    out = tmp_path / "killed"
    num_shards = len(list((tmp_path / "whole/train").glob("*.tar")))
    num_killed = 0
    for number in (1, num_shards // 2):
        process = multiprocessing.get_context("forkserver").Process(
            target=run_prepare, args=([*archives.arguments(out), *options],)
        )
        process.start()
        deadline = time.monotonic() + 60
        work = out / "train/.prepare"
        while process.is_alive() and time.monotonic() < deadline:
            if len(list(work.glob("*.json"))) >= number:
                process.kill()
                break
        process.join()
        num_killed += process.exitcode == -9 and not (out / "train/dataset.json").exists()
    assert num_killed > 0
    # What other moments leave behind: a part of a shard, a shard that has no record yet, and one
    # whose bytes the disk has lost.
    (out / "train/.train-00000.tar.123.tmp").write_bytes(b"a part")
    records = sorted((out / "train/.prepare").glob("*.json"))
    if len(records) > 1:
        records[0].unlink()
        damaged = out / "train" / records[1].name.removesuffix(".json")
        damaged.write_bytes(bytes(damaged.stat().st_size))
    code, said = prepare(*archives.arguments(out), *options)
    assert code == 0, said
    assert ", 0 shard(s) kept" not in said.splitlines()[0]
    assert shard_files(out) == shard_files(tmp_path / "whole")
    code, said = prepare(*archives.arguments(out), *options)
    assert code == 0
    assert said.count("was complete already") == 2
    assert shard_files(out) == shard_files(tmp_path / "whole")


def test_an_unfinished_folder_is_no_data_set(
    small: Archives, tmp_path: Path, prepare: Prepare
) -> None:
    assert prepare(*small.arguments(tmp_path / "out"))[0] == 0
    (tmp_path / "out/train/dataset.json").unlink()
    (tmp_path / "out/train/.prepare").mkdir()
    with pytest.raises(ValueError, match=r"is not prepared to its end .* and it goes on"):
        open_split(tmp_path / "out", "train")


def test_a_shard_that_changed_is_named(small: Archives, tmp_path: Path, prepare: Prepare) -> None:
    out = tmp_path / "out"
    assert prepare(*small.arguments(out), "--samples-per-shard=16")[0] == 0
    shard = out / "train/train-00001.tar"
    whole = shard.read_bytes()
    index = open_split(out, "train")
    everything = np.arange(len(index))
    for content, part in (
        (whole[:-512], f"train-00001.tar has {len(whole) - 512} bytes instead of {len(whole)}"),
        (whole[512:] + bytes(512), "train-00001.tar does not hold"),
        (None, "train-00001.tar cannot be read (No such file or directory)"),
    ):
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            ShardStore(index).read(everything)
        assert part in str(raised.value)
        assert "prepare verify" in str(raised.value)
        code, said = prepare("verify", str(out))
        assert code == 2
        assert "train-00001.tar" in said
    shard.write_bytes(whole[:3000] + b"!" + whole[3001:])
    code, said = prepare("verify", str(out))
    assert code == 2
    assert "train-00001.tar: is not what was written (its sha256 differs)" in said
    shard.write_bytes(whole)
    column = out / "train/index/labels.npy"
    labels = column.read_bytes()
    column.write_bytes(labels[:-8] + (int(labels[-8]) ^ 1).to_bytes(8, "little"))
    code, said = prepare("verify", str(out))
    assert code == 2
    assert "labels.npy: is not what was written" in said
    assert "is of the class" in said

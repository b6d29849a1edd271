"""Packing ImageNet's own archives: bytes, labels, kills, and every kind of damage."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.config import DataConfig
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.read.store import ShardStore, open_store
from resnet_dist.prepare.__main__ import main
from resnet_dist.prepare.devkit import read_validation_classes
from tests.archives import Archives, build_archives, tar_bytes
from tests.launch import share_fork_server

Prepare = Callable[..., tuple[int, str]]
WNIDS = ["n01440764", "n01443537", "n02084071", "n03000000"]


@pytest.fixture
def prepare(capfd: pytest.CaptureFixture[str]) -> Prepare:
    """Calls the entry point: (exit code, what it said)."""

    def call(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        said = capfd.readouterr()
        return code, said.err if code else said.out

    return call


def split_images(contents: list[bytes], wnids: list[str]) -> tuple[dict[str, list[bytes]], list]:
    """Training images by class, and a fifth for validation."""
    train: dict[str, list[bytes]] = {wnid: [] for wnid in wnids}
    val = []
    for i, content in enumerate(contents):
        if i % 5 == 4:
            val.append((wnids[i * 3 % len(wnids)], content))
        else:
            train[wnids[i % len(wnids)]].append(content)
    return train, val


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_image: Callable[..., None]) -> Archives:
    """40 images of 4 classes."""
    folder = tmp_path_factory.mktemp("small")
    contents = []
    for i in range(40):
        write_image(folder / "one.jpg", 30 + 3 * (i % 7), 60 - 4 * (i % 5), seed=i)
        contents.append((folder / "one.jpg").read_bytes())
    return build_archives(folder, *split_images(contents, WNIDS))


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


def open_split(out: Path, split: str, classes: list[str] | None = None) -> Index:
    data = DataConfig(root=str(out), cache_dir=str(out.parent / "cache"))
    return open_index(data, split, build=True, show_progress=False, classes=classes)


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


def replaced(small: Archives, tmp_path: Path, **files: bytes) -> Archives:
    """The archives with others in their places."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: tmp_path / name for name in files}
    return Archives(**{**vars(small), **paths})


def inner_tars(small: Archives) -> dict[str, bytes]:
    with tarfile.open(small.train_tar) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def with_member(content: bytes, info: tarfile.TarInfo) -> bytes:
    """An archive with one more member, without content."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    return content[:end] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info


NAMES = [
    (member("../../x.JPEG"), "leads out of the archive's own folder"),
    (member("/etc/x.JPEG"), "leads out of the archive's own folder"),
    (member("a/../x.JPEG"), "leads out of the archive's own folder"),
    (member("x.JPEG", tarfile.SYMTYPE), "is a link, a device or of an unknown kind"),
    (member("x.JPEG", tarfile.LNKTYPE), "is a link, a device or of an unknown kind"),
    (member("x.JPEG", tarfile.CHRTYPE), "is a link, a device or of an unknown kind"),
    (member("x.JPEG", tarfile.FIFOTYPE), "is a link, a device or of an unknown kind"),
    (member("x.txt"), "is no"),
    (member("...tar"), "is no"),
]


@pytest.mark.parametrize("where", ["train", "inner", "val"])
@pytest.mark.parametrize(("info", "part"), NAMES, ids=lambda value: getattr(value, "name", "")[:9])
def test_members_that_would_escape_are_refused(
    small: Archives, tmp_path: Path, prepare: Prepare, where: str, info: tarfile.TarInfo, part: str
) -> None:
    if where == "val":
        files = {"val_tar": with_member(small.val_tar.read_bytes(), info)}
    elif where == "train":
        files = {"train_tar": with_member(small.train_tar.read_bytes(), info)}
    else:
        inner = inner_tars(small)
        inner[f"{WNIDS[1]}.tar"] = with_member(inner[f"{WNIDS[1]}.tar"], info)
        files = {"train_tar": tar_bytes(inner)}
    (tmp_path / "in").mkdir()
    code, said = prepare(*replaced(small, tmp_path / "in", **files).arguments(tmp_path / "out"))
    assert code == 2
    assert said.startswith("listing the samples ...\nerror: --")
    assert repr(info.name) in said
    assert part in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # nothing was written


def test_archives_that_are_cut_off(small: Archives, tmp_path: Path, prepare: Prepare) -> None:
    train, val = small.train_tar.read_bytes(), small.val_tar.read_bytes()
    end = len(val.rstrip(b"\0")) // 512 * 512 + 512
    inner = inner_tars(small)
    short = inner[f"{WNIDS[2]}.tar"]
    cases = {
        "in an image": ({"val_tar": val[: len(val) // 2]}, "--val-tar"),
        "in a header": ({"val_tar": val[:100]}, "--val-tar"),
        "before the end mark": ({"val_tar": val[:end]}, "--val-tar"),
        "in a class": ({"train_tar": train[: len(train) // 2]}, "--train-tar"),
        "a class itself": (
            {"train_tar": tar_bytes(inner | {f"{WNIDS[2]}.tar": short[: len(short) // 3]})},
            f"{WNIDS[2]}.tar",
        ),
        "empty": ({"train_tar": b""}, "--train-tar"),
    }
    for name, (files, where) in cases.items():
        code, said = prepare(*replaced(small, tmp_path, **files).arguments(tmp_path / "out"))
        assert code == 2, name
        assert "is cut off at byte" in said, name
        assert where in said, name
    code, said = prepare(
        *replaced(small, tmp_path, val_tar=b"x" * 5000).arguments(tmp_path / "out")
    )
    assert code == 2
    assert "no tar header at byte 0" in said


def test_wrong_counts(small: Archives, tmp_path: Path, prepare: Prepare) -> None:
    arguments = small.arguments(tmp_path / "out")
    for option, number, found in (
        ("train", 1281167, "32 images, not 1281167"),
        ("val", 50000, "8 images, not 50000"),
        ("classes", 1000, "4 classes, not 1000"),
    ):
        code, said = prepare(*arguments, f"--expect-{option}={number}")
        assert code == 2
        assert found in said
    code, said = prepare(*arguments[:-3])
    assert code == 2
    assert "not 1000" in said


def test_the_kit(small: Archives, tmp_path: Path, prepare: Prepare) -> None:
    shutil.unpack_archive(small.devkit, tmp_path, "gztar", filter="data")
    expected = read_validation_classes(small.devkit)
    assert read_validation_classes(tmp_path) == expected
    assert read_validation_classes(tmp_path / "ILSVRC2012_devkit_t12") == expected
    data = tmp_path / "ILSVRC2012_devkit_t12/data"
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    whole, mat = truth.read_text(), (data / "meta.mat").read_bytes()
    arguments = Archives(**{**vars(small), "devkit": tmp_path}).arguments(tmp_path / "out")

    def said() -> str:
        code, text = prepare(*arguments)
        assert code == 2
        assert "\nerror: " in text
        return text

    truth.write_text(whole.replace("\n", "\n77\n", 1))
    assert "line 2 of data/ILSVRC2012_validation_ground_truth.txt ('77') is no class" in said()
    truth.write_text(whole.split("\n")[0])
    assert "is none of the 1 images that the devkit has labels for" in said()
    truth.write_text(whole)
    for damaged in (mat[:100], mat[:-50], mat[:150] + b"xyz" + mat[153:], b""):
        (data / "meta.mat").write_bytes(damaged)
        assert "data/meta.mat cannot be read" in said()
    (data / "meta.mat").unlink()
    assert "holds no data/meta.mat" in said()
    arguments[3] = f"--devkit={small.val_tar}"
    assert "holds no data/ILSVRC2012_validation_ground_truth.txt" in said()
    (tmp_path / "cut.tar.gz").write_bytes(small.devkit.read_bytes()[:300])
    arguments[3] = f"--devkit={tmp_path / 'cut.tar.gz'}"
    assert "cannot be read" in said()
    arguments[3] = f"--devkit={tmp_path / 'none'}"
    assert "cannot be read" in said()


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

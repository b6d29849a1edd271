"""The index of a folder of class folders, its cache, and its complaints."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_dist.config import DataConfig
from resnet_dist.data.index import index as index_module
from resnet_dist.data.index import places, scan
from resnet_dist.data.index.index import Index, check_splits, open_index
from resnet_dist.data.index.scan import say_left_out
from resnet_dist.data.read.store import FolderStore
from resnet_dist.errors import UserError
from resnet_dist.system import workers
from tests.launch import share_fork_server

WriteImage = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path, image_root: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(image_root, tmp_path / "data"))


def open_split(root: Path, split: str = "train", *, build: bool = True) -> Index:
    data = DataConfig(root=str(root), cache_dir=str(root.parent / "cache"))
    return open_index(data, split, build=build, show_progress=False)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose headers were read."""
    calls: list[Path] = []
    real = scan.scan_folder

    def counted(folder: Path, **options: Any) -> scan.ScannedFolder:
        calls.append(folder)
        return real(folder, **options)

    monkeypatch.setattr(scan, "scan_folder", counted)
    return calls


def test_columns_describe_the_files(root: Path) -> None:
    index = open_split(root)
    assert index.classes == ["ant", "bee", "cat"]
    assert len(index) == 27
    assert isinstance(index.heights.base, np.memmap)
    for i in range(len(index)):
        path = Path(index.path(i))
        assert path.parent.name == index.classes[index.labels[i]]
        assert path.stat().st_size == index.lengths[i]
        with Image.open(path) as image:
            assert image.size == (index.widths[i], index.heights[i])
    assert [index.path(i) for i in range(27)] == sorted(index.path(i) for i in range(27))


def test_cache_is_used_and_rebuilt_when_the_folder_changes(
    root: Path, scans: list[Path], write_image: WriteImage
) -> None:
    first = open_split(root)
    assert open_split(root).fingerprint == first.fingerprint
    assert open_split(root, build=False).fingerprint == first.fingerprint
    assert len(scans) == 1
    write_image(root / "train/bee/new.png", 10, 20, seed=1)
    assert len(open_split(root)) == 28
    (root / "train/bee/new.png").unlink()
    again = open_split(root)
    assert again.fingerprint == first.fingerprint
    assert len(scans) == 3
    write_image(root / "train/dog/a.jpg", 10, 20, seed=1)
    assert open_split(root).classes == ["ant", "bee", "cat", "dog"]
    # Somebody may be reading the old ones, so they stay for a day.
    caches = list((root.parent / "cache/index").glob("*/data-*"))
    for cache in caches:
        os.utime(cache, (0, 0))
    write_image(root / "train/dog/b.jpg", 10, 20, seed=1)
    open_split(root)
    kept = list((root.parent / "cache/index").glob("*/data-*"))
    assert len(kept) == 1
    assert kept[0] not in caches


def test_equal_content_is_not_replaced(root: Path, scans: list[Path]) -> None:
    """A copy of the data on each node and one cache for all: only the folders' times differ."""
    first = open_split(root)
    for _ in range(2):
        os.utime(root / "train/bee")
        second = open_split(root)
        assert second.columns == first.columns
    assert len(scans) == 3
    assert len(list((root.parent / "cache/index").glob("*/data-*"))) == 1


@pytest.mark.parametrize("name", ["labels", "heights", "lengths", "path_bytes", "path_offsets"])
def test_a_changed_column_is_noticed_and_made_again(
    root: Path, scans: list[Path], name: str
) -> None:
    first = open_split(root)
    path = first.columns / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    second = open_split(root)
    assert len(scans) == 2
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.labels, np.repeat([0, 1, 2], 9))


def test_a_cache_can_be_read_by_whom_the_umask_allows(root: Path) -> None:
    before = os.umask(0o002)
    try:
        index = open_split(root)
    finally:
        os.umask(before)
    assert index.columns.stat().st_mode & 0o777 == 0o775
    files = [*index.columns.iterdir(), index.columns.parent / "index.json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o664}


def test_a_file_replaced_in_place_is_noticed(
    root: Path, scans: list[Path], write_image: WriteImage
) -> None:
    first = open_split(root)
    write_image(root / "train/bee/000.jpg", 10, 20, seed=1)
    second = open_split(root)
    assert len(scans) == 2
    assert second.fingerprint != first.fingerprint
    with pytest.raises(UserError, match=r"bee/000.jpg\): changed since the index was built"):
        FolderStore(first).read(np.arange(27))


def test_a_file_that_vanished_is_named(root: Path) -> None:
    index = open_split(root)
    (root / "train/bee/003.jpg").unlink()
    with pytest.raises(UserError, match=r"bee/003.jpg\): cannot be read \(No such file"):
        FolderStore(index, num_threads=2).read(np.arange(27))


def test_store_returns_the_bytes_in_order(root: Path) -> None:
    index = open_split(root)
    ids = np.array([20, 3, 3, 11, 0, 26])
    for threads in (1, 4, 9):
        read = FolderStore(index, num_threads=threads).read(ids)
        assert [r.tobytes() for r in read] == [Path(index.path(i)).read_bytes() for i in ids]


def test_fingerprint_is_that_of_the_data_not_the_place(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "elsewhere/data"))
    assert open_split(other).fingerprint == open_split(root).fingerprint
    (other / "train/ant/000.jpg").rename(other / "train/ant/zzz.jpg")
    assert open_split(other).fingerprint != open_split(root).fingerprint


def test_damaged_cache_is_rebuilt(root: Path, scans: list[Path]) -> None:
    open_split(root)
    (meta,) = (root.parent / "cache/index").glob("*/index.json")
    meta.write_text("{")
    assert len(open_split(root)) == 27
    for column in meta.parent.glob("data-*/labels.npy"):
        column.unlink()
    assert len(open_split(root)) == 27
    assert len(scans) == 3


def test_an_image_that_claims_all_memory_is_refused(root: Path) -> None:
    path = root / "train/ant/000.jpg"
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ant/000.jpg \(65535x65535 pixels"):
        open_split(root)


def test_files_that_are_no_samples_are_counted(root: Path) -> None:
    for name in ("a.webp", "b.WEBP", "c.gif", "notes"):
        (root / "train/bee" / name).write_bytes(b"x")
    for name in ("d.jfif", "e.jpe"):
        shutil.copy(root / "train/bee/000.jpg", root / "train/bee" / name)
    (root / "train/ant/@eaDir").mkdir()
    shutil.copy(root / "train/ant/000.jpg", root / "train/ant/@eaDir/thumb.jpg")
    (root / "train/@eaDir").mkdir()
    for _ in range(2):  # also from the cache
        index = open_split(root)
        assert len(index) == 29
        assert index.classes == ["ant", "bee", "cat"]
        kinds = {".webp": 2, ".gif": 1, "without a suffix": 1, "below @eaDir": 1}
        assert dict(index.left_out) == kinds
    said = say_left_out(dict(index.left_out))
    assert said == "2 .webp, 1 .gif, 1 below @eaDir, 1 without a suffix"
    shutil.rmtree(root / "train/cat")
    (root / "train/cat").mkdir()
    (root / "train/cat/only.webp").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no image .*only 1 \.webp; fill it or remove it"):
        open_split(root)


def test_large_folders_are_checked_by_their_directories(
    root: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MAX_FILES_CHECKED", 20)
    open_split(root)
    (root / "train/cat/008.jpg").unlink()
    assert len(open_split(root)) == 26
    assert len(scans) == 2


def send_fingerprint(root: Path, sender: Connection) -> None:
    share_fork_server()
    sender.send(open_split(root).fingerprint)


def test_many_processes_may_build_at_once(root: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    processes = [
        workers.context().Process(target=send_fingerprint, args=(root, sender)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert len({receiver.recv() for _ in processes}) == 1
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((root.parent / "cache/index").glob("*/data-*"))) == 1


def test_odd_files(root: Path, write_image: WriteImage) -> None:
    write_image(root / "train/ant/cmyk.JPEG", 21, 34, seed=1, mode="CMYK")
    write_image(root / "train/ant/gray.jpg", 22, 35, seed=1, mode="L")
    write_image(root / "train/ant/real.png", 23, 36, seed=1)
    (root / "train/ant/real.png").rename(root / "train/ant/png.JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: ignored, as the published pipelines do
    with Image.open(root / "train/ant/gray.jpg") as image:
        image.save(root / "train/ant/turned.JPG", exif=exif)
    (root / "train/ant/.hidden.jpg").write_text("not an image")
    (root / "train/ant/notes.txt").write_text("not an image")
    (root / "train/.hidden").mkdir()
    (root / "train/linked").symlink_to(root / "val/bee")
    write_image(root / "train/bee/below/deep.jpg", 24, 37, seed=1)
    (root / "train/bee/below/loop").symlink_to(root / "train/bee")
    index = open_split(root)
    sizes = {
        Path(index.path(i)).name: (int(index.heights[i]), int(index.widths[i]))
        for i in range(len(index))
    }
    assert index.classes == ["ant", "bee", "cat", "linked"]
    assert len(index) == 27 + 4 + 4 + 1
    assert sizes["cmyk.JPEG"] == (21, 34)
    assert sizes["turned.JPG"] == sizes["gray.jpg"] == (22, 35)
    assert sizes["png.JPEG"] == (23, 36)
    assert sizes["deep.jpg"] == (24, 37)


def test_validation_labels_follow_the_training_classes(root: Path, write_image: WriteImage) -> None:
    shutil.rmtree(root / "val/ant")
    data = DataConfig(root=str(root), cache_dir=str(root.parent / "cache"))
    train = open_split(root)
    val = open_index(data, "val", build=True, show_progress=False, classes=train.classes)
    check_splits(train, val)
    assert val.classes == train.classes
    assert val.own_classes == ["bee", "cat"]
    assert np.unique(val.labels).tolist() == [1, 2]
    write_image(root / "val/yak/0.jpg", 10, 10, seed=0)
    with pytest.raises(UserError, match=r"\(or the checkpoint\) lacks: yak; rename or remove"):
        open_index(data, "val", build=True, show_progress=False, classes=train.classes)
    with pytest.raises(UserError, match="yak"):
        check_splits(train, open_split(root, "val"))


def test_cache_root_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESNET_DIST_CACHE", str(tmp_path / "env"))
    assert places.cache_root(DataConfig(cache_dir="/x")) == Path("/x")
    assert places.cache_root(DataConfig()) == tmp_path / "env"
    monkeypatch.delenv("RESNET_DIST_CACHE")
    assert places.cache_root(DataConfig()) == Path.home() / ".cache/resnet_dist"


def test_missing_root_and_split(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.root \(.*nowhere\): does not exist.*train/ and val"):
        open_split(root / "nowhere")
    with pytest.raises(UserError, match=r"lacks the split 'test' and has the folders train, val;"):
        open_split(root, "test")
    with pytest.raises(UserError, match="is not a folder"):
        open_split(root / "train/ant/000.jpg")
    (root / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder of class folders"):
        open_split(root, "file")


def test_empty_folders(root: Path) -> None:
    (root / "void").mkdir()
    with pytest.raises(UserError, match="holds no class folders; expected one folder for each"):
        open_split(root, "void")
    (root / "train/dog").mkdir()
    with pytest.raises(UserError, match=r"train/dog\): the class folder holds no image"):
        open_split(root)


def test_unreadable_images_are_named_up_to_ten(root: Path) -> None:
    for i in range(12):
        whole = (root / f"train/ant/{i % 9:03d}.jpg").read_bytes()
        (root / f"train/cat/bad{i:02d}.jpg").write_bytes(whole[: 4 + i])
    (root / "train/cat/bad05.jpg").write_bytes(b"")
    with pytest.raises(UserError) as raised:
        open_split(root)
    message = str(raised.value)
    assert "12 unreadable image file(s): cat/bad00.jpg (" in message
    assert "cat/bad05.jpg (OSError: the file is empty)" in message
    assert "cat/bad09.jpg" in message
    assert "cat/bad10.jpg" not in message
    assert "and 2 more; replace or remove them (all are named in " in message
    named = Path(message.rpartition("named in ")[2].rstrip(")"))
    assert len(named.read_text().splitlines()) == 12
    assert not list((root.parent / "cache/index").glob("*/index.json"))


@pytest.mark.parametrize("where", ["train", "train/ant"])
def test_permissions(root: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path) == str(root / where):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=where + r"\): the folder cannot be read \(Permission"):
        open_split(root)


def test_no_index_without_build(root: Path) -> None:
    with pytest.raises(UserError, match=r"holds no current index of .*train; build it on this"):
        open_split(root, build=False)


def test_cache_that_cannot_be_written(root: Path) -> None:
    (root.parent / "cache").write_text("a file in the way")
    with pytest.raises(UserError, match=r"data.cache_dir .*cannot keep the index there"):
        open_split(root)


def test_classes_of_several_chunks_keep_their_order(
    tmp_path: Path, write_image: WriteImage
) -> None:
    write_image(tmp_path / "one.jpg", 16, 16, seed=0)
    content = (tmp_path / "one.jpg").read_bytes()
    for i in range(600):
        path = tmp_path / f"data/train/{'ab'[i % 2]}/{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    index = open_split(tmp_path / "data")
    assert len(index) == 600
    assert index.labels.tolist() == [0] * 300 + [1] * 300
    assert [index.path(i) for i in range(600)] == sorted(index.path(i) for i in range(600))

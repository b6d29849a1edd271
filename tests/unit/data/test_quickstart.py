"""The embedded data set: a pure function of its arguments, whole or absent, and hard by pixels."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_dist.data.quickstart import dataset
from resnet_dist.data.quickstart.render import CLASSES, SPLIT_SIZES, VERSION, render
from resnet_dist.errors import UserError

SMALL = {"train": 30, "val": 20}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(dataset, "SPLIT_SIZES", SMALL)
    return SMALL


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.jpg"))
    }


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_layout_is_class_folders_of_readable_jpegs(tmp_path: Path, small: dict[str, int]) -> None:
    root = dataset.ensure_shapes(tmp_path)
    assert root == tmp_path / f"shapes-v{VERSION}"
    for split, count in small.items():
        assert sorted(path.name for path in (root / split).iterdir()) == list(CLASSES)
        for name in CLASSES:
            expected = [f"{number:04d}.jpg" for number in range(count // len(CLASSES))]
            assert sorted(path.name for path in (root / split / name).iterdir()) == expected
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "JPEG"
            assert image.mode in ("RGB", "L")


def test_declared_classes_and_sizes() -> None:
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == 10
    assert SPLIT_SIZES == {"train": 4000, "val": 1000}


def test_files_do_not_depend_on_the_number_of_processes_or_the_order(tmp_path: Path) -> None:
    dataset.write_all(tmp_path / "one", SMALL, num_processes=1)
    dataset.write_all(tmp_path / "two", SMALL, num_processes=2)
    (tmp_path / "alone" / "val" / CLASSES[7]).mkdir(parents=True)
    dataset.write_image(tmp_path / "alone", "val", 17)
    one = digests(tmp_path / "one")
    assert len(one) == sum(SMALL.values())
    assert one == digests(tmp_path / "two")
    assert digests(tmp_path / "alone").items() <= one.items()


def test_every_image_is_another_one() -> None:
    pictures = {render(split, index).tobytes() for split in SPLIT_SIZES for index in range(60)}
    assert len(pictures) == 120


def test_pictures_vary_in_size_aspect_and_mode() -> None:
    pictures = [render("train", index) for index in range(200)]
    widths, heights = np.array([picture.size for picture in pictures]).T
    assert min(widths.min(), heights.min()) >= 48
    assert max(widths.max(), heights.max()) <= 128
    assert len(set(widths.tolist())) > 30
    assert (widths > heights).sum() > 50
    assert (widths < heights).sum() > 50
    assert 4 <= sum(picture.mode == "L" for picture in pictures) <= 40


def test_a_linear_classifier_on_pixels_fails() -> None:
    """Ridge regression onto one-hot labels. Chance is 0.1."""

    def features(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        pictures = [render(split, index).convert("RGB").resize((16, 16)) for index in range(count)]
        pixels = np.stack([np.asarray(picture, np.float64).ravel() for picture in pictures]) / 255
        return pixels - 0.5, np.arange(count) % len(CLASSES)

    pixels, labels = features("train", 1500)
    gram = pixels.T @ pixels + 100.0 * np.eye(pixels.shape[1])
    weights = np.linalg.solve(gram, pixels.T @ np.eye(len(CLASSES))[labels])
    pixels, labels = features("val", 500)
    assert ((pixels @ weights).argmax(axis=1) == labels).mean() < 0.35


@pytest.mark.usefixtures("small")
def test_made_once_and_then_only_read(tmp_path: Path) -> None:
    root = dataset.ensure_shapes(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert dataset.ensure_shapes(tmp_path) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_interrupted_leaves_nothing_and_the_next_attempt_is_whole(
    tmp_path: Path, small: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = tmp_path / f".shapes-v{VERSION}.unfinished-killed"
    leftover.mkdir()

    def interrupted(root: Path, split: str, index: int) -> Path:
        if index == 5:
            raise KeyboardInterrupt
        return write_image(root, split, index)

    write_image = dataset.write_image
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset.ensure_shapes(tmp_path)
    assert files_below(tmp_path) == [f".shapes-v{VERSION}.lock"]
    root = dataset.ensure_shapes(tmp_path)
    assert len(digests(root)) == sum(small.values())
    assert [path for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def _ensure_and_count(cache_dir: Path, queue: multiprocessing.Queue[int]) -> None:
    made = []
    make = dataset._make

    def make_and_count(target: Path, show_progress: bool) -> None:
        made.append(target)
        make(target, show_progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SPLIT_SIZES", SMALL)
        patch.setattr(dataset, "_make", make_and_count)
        root = dataset.ensure_shapes(cache_dir)
    assert len(digests(root)) == sum(SMALL.values())
    queue.put(len(made))


def test_concurrent_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_ensure_and_count, args=(tmp_path, queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(queue.get() for _ in processes) == [0, 0, 1]


def test_a_cache_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir .*cache.*may write"):
        dataset.ensure_shapes(tmp_path / "cache")


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(root: Path, *_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(root))

    monkeypatch.setattr(dataset, "write_image", full)
    with pytest.raises(UserError, match=r"No space left on device.*free 30 MB"):
        dataset.ensure_shapes(tmp_path)
    assert files_below(tmp_path) == [f".shapes-v{VERSION}.lock"]


def test_an_error_in_another_process_reaches_the_parent(tmp_path: Path) -> None:
    # Class folders are missing, so every process meets ENOENT.
    tasks = [("train", range(30)), ("val", range(20))]
    with pytest.raises(OSError) as caught:
        list(dataset._write_in_processes(tmp_path / "absent", tasks, 2))
    assert caught.value.errno == errno.ENOENT

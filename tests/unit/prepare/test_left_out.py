"""What is no sample is counted and said, wherever a data set is looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_dist.errors import UserError, printable, report_error
from resnet_dist.inspect.__main__ import main as inspect
from resnet_dist.prepare.__main__ import main
from tests.unit.prepare.packing import Prepare, open_split

WriteImage = Callable[..., None]
KINDS = {"webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF", "jfif": "JPEG", "jpe": "JPEG"}


@pytest.fixture
def others(root: Path) -> dict[str, int]:
    """Files that are no samples, and how many of each kind; two JPEGs of rare suffixes."""
    for number, (suffix, kind) in enumerate(KINDS.items()):
        path = root / f"train/ant/{number:03d}.jpg"
        Image.open(path).save(path.with_suffix(f".{suffix}"), kind)
        path.unlink()
    (root / "train/bee/@eaDir/000.jpg").mkdir(parents=True)
    shutil.copy(root / "train/bee/000.jpg", root / "train/bee/@eaDir/000.jpg/SYNOPHOTO_M.jpg")
    shutil.copy(root / "train/bee/000.jpg", root / "train/bee/._000.jpg")
    shutil.copy(root / "train/bee/000.jpg", root / "train/stray.jpg")
    (root / "train/__MACOSX").mkdir()
    (root / "train/bee/README").write_text("")
    return {
        **dict.fromkeys((".webp", ".bmp", ".tif", ".gif"), 1),
        "below @eaDir": 1,
        "hidden": 1,
        "in no class folder": 1,
        "without a suffix": 1,
    }


def test_left_out_files_are_counted_everywhere(
    root: Path,
    others: dict[str, int],
    prepare: Prepare,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for _ in range(2):  # also of an index that is there already
        index = open_split(root)
        assert len(index) == 27 - 4
        assert dict(index.left_out) == others
    line = "note: left out of the train images: 1 .bmp, 1 .gif, 1 .tif, 1 .webp, 1 below @eaDir"
    out = root.parent / "out"
    code, said = prepare("folder", str(root), "--out", str(out))
    assert code == 0
    assert line in said
    assert inspect([str(root), "--grid", str(tmp_path / "grid.png"), "model.num_classes=3"]) == 0
    assert line.replace("train", "training") in capfd.readouterr().out


def test_a_class_of_other_files_says_what_they_are(root: Path) -> None:
    for path in (root / "train/bee").glob("*.jpg"):
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(UserError, match=r"train/bee\): the class folder holds no image .*9 .webp"):
        open_split(root)


@pytest.mark.parametrize("other", ["Bee", "bee ", "be\u0301e", "b\u200bee"])
def test_class_names_that_look_alike_are_shown(root: Path, prepare: Prepare, other: str) -> None:
    classes = open_split(root).classes
    shutil.rmtree(root / "val/ant")
    (root / "val/bee").rename(root / "val" / other)
    expected = re.escape(f"{other!a} (there: 'bee')")
    if other == "be\u0301e":
        shutil.copytree(root / "train/bee", root / "train/b\u00e9e")
        classes = open_split(root).classes
        expected = re.escape(r"'be\u0301e' (there: 'b")
    with pytest.raises(UserError, match=expected):
        open_split(root, "val", classes=classes)
    code, said = prepare("folder", str(root), "--out", str(root.parent / "out"))
    assert code == 2
    assert re.search(expected, said)


def test_a_class_that_loses_all_its_images_is_refused(root: Path, prepare: Prepare) -> None:
    for path in (root / "train/bee").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    code, said = prepare("folder", str(root), "--out", str(root.parent / "out"), "--skip-bad")
    assert code == 2
    assert "train: no image of 1 class(es) can be used (bee); replace the images or remove" in said
    assert not (root.parent / "out/train/dataset.json").exists()


def test_all_bad_images_are_named_in_a_file(root: Path, prepare: Prepare) -> None:
    for path in [*(root / "train/bee").glob("*.jpg"), *(root / "train/ant").glob("*.jpg")][:12]:
        path.write_bytes(path.read_bytes()[:-40])
    code, said = prepare("folder", str(root), "--out", str(root.parent / "out"))
    assert code == 2
    found = re.search(r"and 2 more \(all are named in (.*?)\)", said)
    assert found is not None
    assert len(Path(found[1]).read_text().splitlines()) == 12


EVIL = "a\x1b]0;owned\x07\x1b[31m\r\x9b2Jb\u202egpj"


def test_escape_sequences_of_names_do_not_reach_a_terminal(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of files, of classes, of folders, of suffixes, and a newline that would begin a line."""
    (root / f"train/ant/{EVIL}.jpg").write_bytes(b"no image")
    (root / f"train/ant/x.{EVIL}").write_bytes(b"")
    (root / "train/ant/y\nerror: all is lost.jpg").write_bytes(b"no image")
    (root / "train/ant/\udcff.jpg").write_bytes(b"no image")
    out = root.parent / EVIL
    for skip in ([], ["--skip-bad"]):
        main(["folder", str(root), f"--out={out}", *skip])
        main(["verify", str(out)])
        inspect([str(root), "--grid", str(root.parent / "grid.png")])
        inspect([str(out), "--grid", str(root.parent / EVIL)])
    shutil.rmtree(root / "val/ant")
    (root / "val/bee").rename(root / f"val/{EVIL}")
    main(["folder", str(root), f"--out={root.parent / 'other'}"])
    said = capfd.readouterr()
    for text in (said.out, said.err):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r")
    assert r"\x1b]0;owned" in said.err
    assert "\nerror: all is lost" not in said.err
    assert report_error(UserError(EVIL), speaks=True) == 2
    assert printable("n\u00e4her \u732b") == "n\u00e4her \u732b"

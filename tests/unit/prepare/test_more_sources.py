"""ImageNet as Kaggle and Hugging Face give it, and WebDataset shards of others."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.prepare.packing import Prepare, open_split

WNIDS = ["n01440764", "n01443537"]


@pytest.fixture
def images(tmp_path: Path, write_image: Callable[..., None]) -> dict[str, list[bytes]]:
    """Ten images of each class; the last two are for validation."""
    contents: dict[str, list[bytes]] = {}
    for label, wnid in enumerate(WNIDS):
        contents[wnid] = []
        for number in range(10):
            write_image(tmp_path / "one.jpg", 20 + number, 30 + label, seed=label * 10 + number)
            contents[wnid].append((tmp_path / "one.jpg").read_bytes())
    return contents


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def kaggle(root: Path, images: dict[str, list[bytes]]) -> Path:
    base = root / "ILSVRC/Data/CLS-LOC"
    (base / "val").mkdir(parents=True)
    (base / "test").mkdir()
    rows, number = ["ImageId,PredictionString"], 0
    for wnid, contents in images.items():
        (base / "train" / wnid).mkdir(parents=True)
        for i, content in enumerate(contents[:8]):
            (base / f"train/{wnid}/{wnid}_{i}.JPEG").write_bytes(content)
        for content in contents[8:]:
            number += 1
            (base / f"val/ILSVRC2012_val_{number:08d}.JPEG").write_bytes(content)
            rows.insert(1, f"ILSVRC2012_val_{number:08d},{wnid} 1 2 30 40 {wnid} 5 6 7 8 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


def check(out: Path, images: dict[str, list[bytes]], classes: list[str] = WNIDS) -> None:
    """The split holds these images under these classes."""
    for split, part in (("train", slice(8)), ("val", slice(8, None))):
        index = open_split(out, split)
        assert index.own_classes == classes
        expected = [
            (label, len(content))
            for label, contents in enumerate(images.values())
            for content in contents[part]
        ]
        found = zip(index.labels.tolist(), index.lengths.tolist(), strict=True)
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_kaggle(
    tmp_path: Path, images: dict[str, list[bytes]], prepare: Prepare, below: str
) -> None:
    root = kaggle(tmp_path / "kaggle", images)
    code, said = prepare("folder", str(root / below), "--out", str(tmp_path / "out"))
    assert code == 0, said
    check(tmp_path / "out", images)


def test_kaggle_with_a_table_that_does_not_fit(
    tmp_path: Path, images: dict[str, list[bytes]], prepare: Prepare
) -> None:
    root = kaggle(tmp_path / "kaggle", images)
    table = root / "LOC_val_solution.csv"
    arguments = ["folder", str(root), "--out", str(tmp_path / "out")]
    whole = table.read_text()
    for content, said in (
        ("\n".join(whole.splitlines()[:-1]), "there is no label for ILSVRC2012_val_00000001 in"),
        (
            f"{whole}ILSVRC2012_val_00000009,n01440764",
            "there is no image of ILSVRC2012_val_00000009",
        ),
        (whole.replace("n01443537", "n99999999"), "holds classes that the training split lacks"),
        ("a\nb\n", "cannot be read"),
    ):
        table.write_text(content)
        code, found = prepare(*arguments)
        assert code == 2
        assert said in found
    table.unlink()
    code, found = prepare(*arguments)
    assert code == 2
    assert "--val-labels (Kaggle's is LOC_val_solution.csv)" in found


def hugging_face(root: Path, images: dict[str, list[bytes]]) -> tuple[list[Path], Path]:
    train = [
        write_tar(
            root / f"train_images_{part}.tar",
            {
                f"{wnid}_{i}_{wnid}.JPEG": contents[i]
                for wnid, contents in images.items()
                for i in range(part * 4, part * 4 + 4)
            },
        )
        for part in range(2)
    ]
    val = {
        f"ILSVRC2012_val_{label * 2 + i:08d}_{wnid}.JPEG": contents[i]
        for label, (wnid, contents) in enumerate(images.items())
        for i in (8, 9)
    }
    return train, write_tar(root / "val_images.tar", val)


def test_hugging_face(tmp_path: Path, images: dict[str, list[bytes]], prepare: Prepare) -> None:
    train, val = hugging_face(tmp_path / "hf", images)
    arguments = ["tars", "--train", *map(str, train), "--out", str(tmp_path / "out")]
    packed = Path(f"{val}.gz")
    packed.write_bytes(gzip.compress(val.read_bytes()))
    code, said = prepare(*arguments, "--val", str(packed))
    assert code == 2
    assert f"is compressed; unpack it to a plain tar first (`gunzip {packed}`)" in said
    code, said = prepare(*arguments, "--val", str(val))
    assert code == 0, said
    check(tmp_path / "out", images)


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("names", ["wnid", "none"])
def test_web_datasets_of_others(
    tmp_path: Path, images: dict[str, list[bytes]], prepare: Prepare, kind: str, names: str
) -> None:
    """In the training shards of timm names begin with the WordNet id; in validation they do not."""
    for split, part in (("train", range(8)), ("val", (8, 9))):
        members = {}
        for label, (wnid, contents) in enumerate(images.items()):
            for i in part:
                stem = f"{wnid}_{i}" if names == "wnid" and split == "train" else f"{label}{i:05d}"
                members[f"{stem}.jpg"] = contents[i]
                content = str(label) if kind == "cls" else json.dumps({"label": label})
                members[f"{stem}.{kind}"] = content.encode()
        write_tar(tmp_path / f"{split}-0000.tar", members)
    arguments = [f"--{split}={tmp_path / f'{split}-0000.tar'}" for split in ("train", "val")]
    code, said = prepare("tars", *arguments, "--out", str(tmp_path / "out"))
    assert code == 0, said
    check(tmp_path / "out", images, WNIDS if names == "wnid" else ["0000", "0001"])


def test_our_own_shards_are_read_again(
    tmp_path: Path, images: dict[str, list[bytes]], prepare: Prepare
) -> None:
    root = kaggle(tmp_path / "kaggle", images)
    assert prepare("folder", str(root), "--out", str(tmp_path / "first"))[0] == 0
    arguments = [
        f"--{split}={tmp_path / f'first/{split}/{split}-00000.tar'}" for split in ("train", "val")
    ]
    code, said = prepare("tars", *arguments, "--out", str(tmp_path / "out"))
    assert code == 0, said
    check(tmp_path / "out", images)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.txt": b""}, "holds no image"),
        ({"a.jpg": b""}, "nothing says the class of 'a.jpg'"),
        ({"a.jpg": b"", "a.cls": b"x"}, "'a.cls' holds no number of a class"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "'a.cls' holds no number of a class"),
        ({"a.jpg": b"", "a.json": b"["}, "'a.json' holds no JSON"),
    ],
)
def test_archives_that_do_not_say_it(
    tmp_path: Path, prepare: Prepare, members: dict[str, bytes], said: str
) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    code, found = prepare("tars", f"--train={path}", f"--val={path}", "--out", str(tmp_path / "o"))
    assert code == 2
    assert said in found

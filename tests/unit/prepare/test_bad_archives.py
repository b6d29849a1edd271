"""ImageNet's archives with every kind of damage: refused in a sentence, with nothing written."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from resnet_dist.prepare.devkit import read_class_ids, read_validation_classes
from tests.archives import WNIDS, Archives, tar_bytes
from tests.unit.prepare.packing import Prepare


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
    whole = truth.read_text()
    arguments = Archives(**{**vars(small), "devkit": tmp_path}).arguments(tmp_path / "out")

    def said() -> str:
        code, text = prepare(*arguments)
        assert code == 2
        assert "\nerror: " in text
        return text

    for wrong in ("1001", "0", "-1", "x"):
        truth.write_text(whole.replace("\n", f"\n{wrong}\n", 1))
        expected_line = f"line 2 of data/ILSVRC2012_validation_ground_truth.txt ({wrong!r})"
        assert f"{expected_line} is no class, 1 to 1000" in said()
    truth.write_text(whole.split("\n")[0])
    assert "is none of the 1 images that the devkit has labels for" in said()
    truth.write_text("".join(f"{i % 1000 + 1}\n" for i in range(49_999)) + "7\n")
    assert "does not give each class 50 images (not n0" in said()
    truth.unlink()
    assert "holds no data/ILSVRC2012_validation_ground_truth.txt" in said()
    arguments[3] = f"--devkit={small.val_tar}"
    assert "holds no data/ILSVRC2012_validation_ground_truth.txt" in said()
    (tmp_path / "cut.tar.gz").write_bytes(small.devkit.read_bytes()[:150])
    arguments[3] = f"--devkit={tmp_path / 'cut.tar.gz'}"
    assert "cannot be read" in said()
    arguments[3] = f"--devkit={tmp_path / 'none'}"
    assert "cannot be read" in said()


def test_the_numbers_of_the_classes() -> None:
    """All classes of ImageNet as timm names them, in the kit's own order."""
    wnids = read_class_ids()
    assert list(wnids) == list(range(1, 1001))
    assert sorted(wnids.values()) == sorted(ImageNetInfo().label_names())
    # As the kit has it: kit fox, English setter, and the first validation images.
    assert [wnids[number] for number in (1, 2, 1000)] == ["n02119789", "n02100735", "n03255030"]
    labels = [sorted(wnids.values()).index(wnids[number]) for number in (490, 361, 171, 822, 297)]
    assert labels == [65, 970, 230, 809, 516]

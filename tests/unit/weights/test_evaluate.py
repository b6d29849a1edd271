"""`resnet-dist evaluate`: the counts of a plain loop, by names of classes, and nothing written."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnet_dist.evaluate.__main__ import main
from resnet_dist.weights.subject import open_subject
from tests.unit.weights.test_read_and_fit import randomised

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of the command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "data.num_workers=1"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def found_in(text: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(text)
    return loaded


def test_weights_and_average_of_a_run_and_nothing_is_written(
    small_run: Path, evaluate: Run
) -> None:
    before = files_of(small_run)
    code, out, err = evaluate(str(small_run), "--format=json")
    assert code == 0, err
    model, ema = found_in(out)
    assert (model["which"], ema["which"]) == ("model", "ema")
    assert model["images"] == 12
    assert sum(one["images"] for one in model["per_class"]) == 12
    wrong = sum(one["images"] for one in model["confusions"])
    assert wrong == len(model["mistakes"]) == 12 - model["correct"]
    confidences = [one["confidence"] for one in model["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert files_of(small_run) == before
    code, out, _ = evaluate(str(small_run), "--which=ema", "--format=csv")
    (row,) = csv.DictReader(out.splitlines())
    assert float(row["loss"]) == ema["loss"]
    code, out, _ = evaluate(str(small_run))
    assert code == 0
    assert f"{model['top1']:8.2%}" in out


def test_files_are_written_on_request(small_run: Path, evaluate: Run, tmp_path: Path) -> None:
    code, _, err = evaluate(str(small_run), f"--out={tmp_path / 'found'}")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert names == ["evaluation.csv", "evaluation.json", "evaluation.png", "per_class.csv"]


def test_val_alone_suffices_and_classes_are_matched_by_name(
    small_checkpoint: Path, image_root: Path, evaluate: Run, tmp_path: Path
) -> None:
    shutil.copytree(image_root / "val", tmp_path / "some/val")
    _, whole, _ = evaluate(str(small_checkpoint), "--format=json", "--which=model")
    shutil.rmtree(tmp_path / "some/val/ant")
    root = f"data.root={tmp_path / 'some'}"
    code, out, err = evaluate(str(small_checkpoint), root, "--format=json", "--which=model")
    assert code == 0, err
    assert found_in(out)[0]["per_class"] == found_in(whole)[0]["per_class"][1:]
    (tmp_path / "some/val/bee").rename(tmp_path / "some/val/Bee")
    code, _, err = evaluate(str(small_checkpoint), root)
    assert code == 2
    assert "lacks: 'Bee' (there: 'bee')" in err
    (tmp_path / "names").write_text("ant\nBee\ncat\n")
    code, renamed, err = evaluate(
        str(small_checkpoint), root, f"--classes={tmp_path / 'names'}", "--format=json"
    )
    assert code == 0, err
    assert found_in(renamed)[0]["correct"] == found_in(out)[0]["correct"]


def test_the_counts_are_those_of_torchvisions_own_pipeline(
    real_images: Path, evaluate: Run, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "val").symlink_to(real_images)
    num_classes = sum(path.is_dir() for path in real_images.iterdir())
    # Of a new network all images have nearly the same outputs: ties that rounding decides.
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of some networks, two outputs for an image are equal up to rounding
        theirs = randomised(torchvision.models.resnet18(num_classes=num_classes)).float()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    size = ["data.eval_resize_size=72", "data.eval_size=64"]
    code, out, err = evaluate(str(tmp_path / "w.pth"), f"data.root={root}", "--format=json", *size)
    assert code == 0, err
    assert "class folders are taken in the order of their names" in err
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(72, antialias=True),
            v2.CenterCrop(64),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    correct = five = 0
    with torch.inference_mode():
        for image, label in ImageFolder(real_images, transform):
            logits = theirs(image[None])[0]
            correct += int(logits.argmax() == label)
            five += int(label in logits.topk(min(5, num_classes)).indices)
    (row,) = found_in(out)
    assert row["correct"] == correct
    assert round(row["top5"] * row["images"]) == five


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "no such file"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1000]),
            "is cut off, or no file of torch",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "do not match its checksum"),
    ],
)
def test_damaged_files_are_one_sentence(
    change: Callable[[Path], object],
    said: str,
    small_checkpoint: Path,
    evaluate: Run,
    tmp_path: Path,
) -> None:
    path = tmp_path / "copy.pt"
    shutil.copy(small_checkpoint, path)
    change(path)
    code, out, err = evaluate(str(path))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_another_network_is_named(small_checkpoint: Path, evaluate: Run) -> None:
    code, _, err = evaluate(str(small_checkpoint), "model.width=16")
    assert code == 2
    assert "are of another network; these tensors differ: conv1.weight: 8 x 3" in err
    assert open_subject(str(small_checkpoint)).classes == ["ant", "bee", "cat"]

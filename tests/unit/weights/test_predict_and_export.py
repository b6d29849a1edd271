"""Predictions stream over files; exported files are read by their own readers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from resnet_dist.export.__main__ import FORMATS
from resnet_dist.export.__main__ import main as export
from resnet_dist.predict.__main__ import main as predict
from resnet_dist.weights.subject import open_subject
from tests.launch import TINY


def test_predictions_are_those_of_the_network_in_order(
    small_checkpoint: Path, image_root: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(image_root / "val", tmp_path / "photos")
    (tmp_path / "photos/bee/000.jpg").write_bytes(b"no image")
    (tmp_path / "photos/ant/x.webp").write_bytes(b"")
    words = [str(small_checkpoint), str(tmp_path / "photos"), "--batch-size=5", "--top=2"]
    assert predict([*words, "--format=jsonl", f"--out={tmp_path / 'p.jsonl'}"]) == 1
    said = capfd.readouterr().err
    assert f"skipped: {tmp_path}/photos/bee/000.jpg: no JPEG or PNG image" in said
    assert "no images by their names: 1 .webp" in said
    assert "11 images; 1 files were skipped" in said
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    names = [line["image"] for line in lines]
    assert names == sorted(names)
    assert len(names) == 11
    assert predict([*words, "--format=csv"]) == 1
    rows = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert [row["class1"] for row in rows] == [line["predictions"][0]["class"] for line in lines]
    for line in lines:
        shares = [one["probability"] for one in line["predictions"]]
        assert 1 >= shares[0] >= shares[1] >= 0


def test_single_images_need_no_readers(
    small_checkpoint: Path, image_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = image_root / "val/cat/001.jpg"
    assert predict([str(small_checkpoint), str(path)]) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"{path}: ")
    assert out.count("%") == 3  # all classes there are
    assert predict([str(small_checkpoint), "/none.jpg"]) == 2
    assert "IMAGES (/none.jpg): no such file or folder" in capfd.readouterr().err
    assert predict([str(small_checkpoint)]) == 2


OURS = [form for form in FORMATS if form not in ("torchvision", "timm")]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # it is announced to go
@pytest.mark.parametrize("form", OURS)
def test_a_run_is_exported_and_read_back(
    form: str, small_run: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    suffix = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}.get(form)
    path = tmp_path / f"mine{suffix or '.safetensors'}"
    assert export([str(small_run), f"--format={form}", f"--out={path}", "--ema"]) == 0
    assert "read back: logits differ by" in capfd.readouterr().out
    card = path.with_suffix(".md").read_text()
    assert "the moving average of the weights" in card
    assert "2. cat" in card
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "mine.md"])
    expected = open_subject(str(small_run)).network(average=True)
    size = open_subject(str(small_run)).config.data.eval_size
    images = torch.rand(3, 3, size, size)  # another batch size than it was traced with
    with torch.inference_mode():
        logits = expected(images)
        match form:
            case "onnx":
                import onnxruntime

                session = onnxruntime.InferenceSession(str(path))
                (found,) = session.run(None, {"images": images.numpy()})
                scale = float(logits.abs().max())
                assert np.abs(found - logits.numpy()).max() < 1e-5 * scale
                said = session.get_modelmeta().custom_metadata_map["resnet_dist"]
                assert json.loads(said)["classes"] == ["ant", "bee", "cat"]
            case "torchscript":
                assert torch.allclose(torch.jit.load(str(path))(images), logits)
            case "torch_export":
                assert torch.allclose(torch.export.load(path).module()(images), logits)
            case _:
                with safe_open(path, framework="pt") as file:
                    assert json.loads(file.metadata()["resnet_dist"])["step"] > 0
                again = open_subject(str(path))
                assert again.classes == ["ant", "bee", "cat"]
                assert torch.equal(again.network(average=False)(images), logits)


@pytest.mark.parametrize("form", ["torchvision", "timm"])
def test_a_standard_network_goes_back_to_its_library(
    form: str, image_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from resnet_dist import train

    words = [f"run.dir={tmp_path / 'run'}", f"data.root={image_root}", "log.tensorboard=false"]
    settings = [
        "model.width=64",
        "model.stem=standard",
        "train.global_batch_size=9",
        "train.max_steps=1",
    ]
    assert train.main([*TINY, *words, *settings]) == 0
    suffix = ".pth" if form == "torchvision" else ".safetensors"
    path = tmp_path / f"mine{suffix}"
    code = export([str(tmp_path / "run"), f"--format={form}", f"--out={path}"])
    assert code == 0, capfd.readouterr().err
    assert "logits differ by 0 at most" in capfd.readouterr().out


def test_what_other_libraries_lack_is_said(
    small_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for form, suffix, said in (
        ("torchvision", ".pth", "has no network like this one"),
        ("onnx", ".pth", "must end with .onnx"),
    ):
        path = tmp_path / f"mine{suffix}"
        assert export([str(small_run), f"--format={form}", f"--out={path}"]) == 2
        assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []

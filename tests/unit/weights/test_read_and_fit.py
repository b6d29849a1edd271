"""Weights of other programs go in, with equal logits, or are answered with what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.data.imagenet import imagenet_classes, imagenet_words
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.weights.architecture import guess_model
from resnet_dist.weights.fit import start_from
from resnet_dist.weights.read import read_weights
from resnet_dist.weights.subject import open_subject


def randomised(model: nn.Module) -> nn.Module:
    """With statistics and scales that are not those of a new network, in float64."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if "running_var" in name else value + 0.1 * (noise - 0.5))
    return model.double().eval()


PEERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision:resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "torchvision:resnet50": lambda: torchvision.models.resnet50(num_classes=7),
    "timm:resnet34": lambda: timm.create_model("resnet34", num_classes=7),
    "timm:resnet50d": lambda: timm.create_model("resnet50d", num_classes=7),
    "timm:resnet18, grey": lambda: timm.create_model("resnet18", num_classes=7, in_chans=1),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", PEERS)
def test_logits_are_those_of_the_network_that_it_came_from(
    name: str, suffix: str, tmp_path: Path
) -> None:
    theirs = randomised(PEERS[name]())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    words = ["data.grayscale=true"] if "grey" in name else []
    ours = open_subject(str(path), [], words).network(average=False).double()
    ours.load_state_dict(theirs.state_dict())  # the file's are rounded to float32
    images = torch.rand(2, 1 if words else 3, 65, 64, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


class TextbookResNet9(nn.Module):
    """As taught: biased convolutions, and a classifier of its own."""

    def __init__(self) -> None:
        super().__init__()

        def unit(a: int, b: int, *, pool: bool = False) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

        self.conv1, self.conv2 = unit(3, 16), unit(16, 32, pool=True)
        self.res1 = nn.Sequential(unit(32, 32), unit(32, 32))
        self.conv3, self.conv4 = unit(32, 64, pool=True), unit(64, 128, pool=True)
        self.res2 = nn.Sequential(unit(128, 128), unit(128, 128))
        self.classifier = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        out = self.conv4(self.conv3(self.res1(out) + out))
        result: torch.Tensor = self.classifier(self.res2(out) + out)
        return result


def test_the_textbook_resnet9_is_read(tmp_path: Path) -> None:
    theirs = randomised(TextbookResNet9())
    torch.save(theirs.float().state_dict(), tmp_path / "cifar10-resnet9.pth")
    images = torch.rand(2, 3, 32, 32)
    for words in ([], ["model.conv_bias=false"]):  # as it is, and folded into the batch norms
        subject = open_subject(str(tmp_path / "cifar10-resnet9.pth"), [], words)
        assert subject.config.model.conv_bias == (not words)
        with torch.inference_mode():
            found = subject.network(average=False)(images)
            assert torch.allclose(found, theirs.float()(images), rtol=1e-4, atol=1e-5)


def wrapped(state: dict[str, Any], how: str) -> Any:
    match how:
        case "timm's checkpoint":
            ema = {name: value * 2 for name, value in state.items()}
            return {"state_dict": state, "state_dict_ema": ema, "epoch": 3, "arch": "resnet18"}
        case "torchvision's checkpoint":
            inner = {f"module.{name}": value for name, value in state.items()}
            ema = {"n_averaged": torch.tensor(1), **inner}
            return {"model": inner, "model_ema": ema, "optimizer": {"state": {}}, "epoch": 3}
        case "compiled in DDP":
            return {f"module._orig_mod.{name}": value for name, value in state.items()}
    return {f"model.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "how", ["timm's checkpoint", "torchvision's checkpoint", "compiled in DDP", "a wrapper"]
)
def test_wrapping_is_taken_off(how: str, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    torch.save(wrapped(state, how), tmp_path / "w.tar")
    found = read_weights(str(tmp_path / "w.tar"))
    assert list(found.tensors) == list(state)
    assert (found.average is not None) == ("checkpoint" in how)
    assert guess_model(found.tensors)["model.name"] == "resnet18"  # type: ignore[index]


def test_imagenets_classes() -> None:
    assert len(imagenet_classes()) == 1000
    assert list(imagenet_words().items())[:2] == [("n01440764", "tench"), ("n01443537", "goldfish")]


def start(tmp_path: Path, classes: list[str], *, known: list[str] | None = None) -> Any:
    """A network for `classes` that starts from one of five outputs; with its notes and the file."""
    theirs = torchvision.models.resnet18(num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    weights = read_weights(str(tmp_path / "w.pth"))
    weights.classes = known
    model = build_model(ModelConfig(name="resnet18"), num_classes=len(classes), seed=1)
    before = model.state_dict()["fc.weight"].clone()
    notes = start_from(model, weights, weights.tensors, classes)
    assert torch.equal(model.state_dict()["conv1.weight"], theirs.conv1.weight)
    return model.state_dict()["fc.weight"], before, theirs.fc.weight, notes[-1]


def test_other_classes_get_a_new_last_layer(tmp_path: Path) -> None:
    head, before, _, note = start(tmp_path, ["a", "b", "c"])
    assert torch.equal(head, before)
    assert note == "the last layer is new: 3 classes instead of the file's 5"
    head, before, _, note = start(tmp_path, list("vwxyz"), known=list("abcde"))
    assert torch.equal(head, before)
    assert note.endswith("which have other names")


def test_known_classes_keep_their_outputs_by_name(tmp_path: Path) -> None:
    head, _, theirs, note = start(tmp_path, ["d", "b"], known=list("abcde"))
    assert torch.equal(head, theirs[[3, 1]])
    assert note == "the last layer is taken over for 2 of its 5 classes, by their names"
    head, _, theirs, note = start(tmp_path, list("vwxyz"))
    assert torch.equal(head, theirs)
    assert "does not name its 5 classes" in note


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "w.pth")
    weights = read_weights(str(tmp_path / "w.pth"))
    model = build_model(ModelConfig(name="resnet18"), num_classes=3, seed=0)
    with pytest.raises(
        UserError,
        match=r"layer1\.0\.conv1\.weight: 64 x 64 x 1 x 1 .*; the file's is model\.name=resnet50",
    ):
        start_from(model, weights, weights.tensors, ["a", "b", "c"])


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is cut off, or no file of torch"),
        (lambda path: path.write_bytes(b"PK" * 99), "is cut off, or no file of torch"),
        (lambda path: torch.save(Evil(), path), "holds pickled objects, which could run any code"),
        (lambda path: torch.save({"epoch": 3}, path), "hold no state dict"),
        (lambda path: torch.save([1, 2], path), "hold no state dict"),
    ],
)
def test_files_that_are_none(make: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(UserError, match=said):
        read_weights(str(tmp_path / "w.pth"))


def test_cut_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(9)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for length in (0, 5, len(whole) - 1):
        (tmp_path / "w.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match="no whole safetensors file"):
            read_weights(str(tmp_path / "w.safetensors"))


def test_published_weights_need_a_known_name_and_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="torchvision publishes IMAGENET1K_V1, IMAGENET1K_V2"):
        read_weights("torchvision:V9", model_name="resnet50")
    with pytest.raises(UserError, match="has no network 'resnet51'"):
        read_weights("torchvision:resnet51:IMAGENET1K_V1")

    def fail(*_args: object, **_options: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)  # a MOCK of a missing network
    with pytest.raises(UserError, match=r"cannot be fetched from https://.*no network here"):
        read_weights("torchvision:IMAGENET1K_V2", model_name="resnet50")

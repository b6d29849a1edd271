"""One network into one file, and back, to see that it is the same network.

A function that writes and one that reads for each format; the reader is the other program's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_dist.config import Config, ModelConfig
from resnet_dist.config.load import to_flat
from resnet_dist.errors import UserError
from resnet_dist.export.card import model_card
from resnet_dist.models.foreign import build_foreign
from resnet_dist.system.files import replace_file
from resnet_dist.weights.read import METADATA
from resnet_dist.weights.subject import Subject, open_subject, with_classes

_TOLERANCE = 1e-4
_SEED = 0


@dataclass(frozen=True)
class Export:
    """What is written."""

    subject: Subject
    model: nn.Module
    """In evaluation mode, on the CPU, with plain batch norms."""
    images: Tensor
    """`[2, channels, size, size]`, for tracing and comparing."""

    @property
    def config(self) -> Config:
        """The settings of the run that made it."""
        return self.subject.config

    def metadata(self) -> str:
        """What our own reader takes from a file."""
        return json.dumps(
            {
                "classes": self.subject.classes,
                "settings": to_flat(self.config),
                "step": self.subject.weights.step,
            }
        )


_Write = Callable[[Export, Path], None]
_Read = Callable[[Export, Path], Tensor]


def export(arguments: argparse.Namespace) -> tuple[Path, Path, float]:
    """Write the file and its card. Returns both paths and the largest difference of logits after
    reading it back. Raises UserError."""
    subject = open_subject(arguments.weights, arguments.config, arguments.overrides)
    if arguments.classes is not None:
        subject = with_classes(subject, arguments.classes)
    model = subject.network(average=arguments.ema)
    size, channels = subject.config.data.eval_size, subject.config.model.in_channels
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(2, channels, size, size, generator=generator)
    what = Export(subject, model, images)
    write, read, suffix = _FORMATS[arguments.format]
    name = subject.config.model.name.replace(":", "_").replace("/", "_")
    path: Path = arguments.out or Path(f"{name}{'_ema' if arguments.ema else ''}{suffix}")
    if not path.parent.is_dir():
        raise UserError(f"--out ({path}): its folder does not exist; make it, or give another file")
    ending = f".{suffix.rpartition('.')[2]}"
    if path.suffix != ending:
        raise UserError(f"--out ({path}): must end with {ending}, as readers expect")
    card = path.with_suffix(".md")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            made = Path(folder) / path.name
            difference = _write_and_compare(what, made, write, read)
            if not difference < _TOLERANCE:
                raise UserError(
                    f"--format ({arguments.format}): what was read back gives other logits (by "
                    f"{difference:.1g}), so nothing was written; export another format"
                )
            made.replace(path)
        text = model_card(subject, path, arguments.format, average=arguments.ema)
        replace_file(card, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"--out ({path}): cannot be written ({error.strerror or error}); give another file, or "
            f"make room"
        ) from None
    except ImportError as error:
        raise UserError(
            f"--format ({arguments.format}): needs a package that is not installed ({error.name}); "
            f"`pip install 'resnet_dist[export,timm]'`"
        ) from None
    return path, card, difference


def _write_and_compare(what: Export, path: Path, write: _Write, read: _Read) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    expected = _logits(what.model, what.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, about themselves
        write(what, path)
        found = read(what, path)
    return float((found - expected).abs().max() / expected.abs().max())


def _state(what: Export) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in what.model.state_dict().items()}


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model.eval()(images)
    return result


def _write_torchvision(what: Export, path: Path) -> None:
    _peer(what, "torchvision")  # raises where it has no such network
    torch.save(_state(what), path)


def _write_timm(what: Export, path: Path) -> None:
    from safetensors.torch import save_file

    _peer(what, "timm")
    save_file(_state(what), path, metadata={"format": "pt", METADATA: what.metadata()})


def _write_safetensors(what: Export, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_state(what), path, metadata={"format": "pt", METADATA: what.metadata()})


def _peer(what: Export, program: str) -> nn.Module:
    """The network of another program that these weights fit. Raises UserError if it has none."""
    config = what.config.model
    name = config.name
    if config.is_foreign:
        if name.partition(":")[0] != program:
            raise UserError(
                f"--format ({program}): has no network {name}; take safetensors or onnx"
            )
        peer = name
    else:
        is_theirs = (
            config.width == 64
            and config.shortcut_norm
            and not config.conv_bias
            and config.blur_pool == "none"
            and name != "resnet9"
            and (config.stride == "v1.5" or name in ("resnet18", "resnet34"))
            and config.stem in ({"standard"} if program == "torchvision" else {"standard", "d"})
            and (config.in_channels == 3 or program == "timm")
        )
        if not is_theirs:
            raise UserError(
                f"--format ({program}): has no network like this one ({name}, width "
                f"{config.width}, stem {config.stem}, stride {config.stride}, blur_pool "
                f"{config.blur_pool}); take safetensors, onnx, torchscript or torch_export"
            )
        peer = f"{program}:{name}{'d' if config.stem == 'd' else ''}"
    wanted = ModelConfig(name=peer, in_channels=config.in_channels)
    return build_foreign(wanted, what.subject.num_classes)


def _read_peer(program: str) -> Callable[[Export, Path], Tensor]:
    def read(what: Export, path: Path) -> Tensor:
        from safetensors.torch import load_file

        model = _peer(what, program)
        is_torch = path.suffix != ".safetensors" and program == "torchvision"
        state = torch.load(path, weights_only=True) if is_torch else load_file(path)
        # Blocks that start at zero are an option there, not another network.
        model.load_state_dict(state)
        return _logits(model, what.images)

    return read


def _read_safetensors(what: Export, path: Path) -> Tensor:
    return _logits(open_subject(str(path)).network(average=False), what.images)


def _write_onnx(what: Export, path: Path) -> None:
    import onnx
    import onnxruntime  # noqa: F401 (before the work: reading back needs it)

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        what.model,
        (what.images,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    program.save(path)
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, what.metadata()
    onnx.save(model, path)


def _read_onnx(what: Export, path: Path) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in session.get_inputs()]
    (logits,) = session.run(None, {name: what.images.numpy()})
    return torch.from_numpy(logits)


def _write_torchscript(what: Export, path: Path) -> None:
    traced = torch.jit.trace(what.model, what.images)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={METADATA: what.metadata()})


def _read_torchscript(what: Export, path: Path) -> Tensor:
    return _logits(torch.jit.load(str(path)), what.images)  # type: ignore[no-untyped-call]


def _write_torch_export(what: Export, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(what.model, (what.images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={METADATA: what.metadata()})


def _read_torch_export(what: Export, path: Path) -> Tensor:
    with torch.inference_mode():
        result: Tensor = torch.export.load(path).module()(what.images)
    return result


_FORMATS: dict[str, tuple[_Write, _Read, str]] = {
    "torchvision": (_write_torchvision, _read_peer("torchvision"), ".pth"),
    "timm": (_write_timm, _read_peer("timm"), ".safetensors"),
    "safetensors": (_write_safetensors, _read_safetensors, ".safetensors"),
    "onnx": (_write_onnx, _read_onnx, ".onnx"),
    "torchscript": (_write_torchscript, _read_torchscript, ".torchscript.pt"),
    "torch_export": (_write_torch_export, _read_torch_export, ".pt2"),
}

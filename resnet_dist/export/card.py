"""The model card beside an exported file."""

from __future__ import annotations

from pathlib import Path

from resnet_dist import __version__
from resnet_dist.weights.subject import Subject

_READ = {
    "torchvision": """import torch, torchvision

model = torchvision.models.get_model("{name}", num_classes={num_classes})
model.load_state_dict(torch.load("{file}", weights_only=True))""",
    "timm": """import timm
from safetensors.torch import load_file

model = timm.create_model("{name}", num_classes={num_classes})
model.load_state_dict(load_file("{file}"))""",
    "safetensors": """resnet-dist evaluate {file} data.root=DATA
resnet-dist predict {file} IMAGES
resnet-dist train --config finetune model.weights={file} data.root=DATA""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(logits,) = session.run(None, {{"images": images}})""",
    "torchscript": """import torch

logits = torch.jit.load("{file}")(images)""",
    "torch_export": """import torch

logits = torch.export.load("{file}").module()(images)""",
}


def model_card(subject: Subject, path: Path, form: str, *, average: bool) -> str:
    """What the file is, what goes in, what comes out, and how to read it: Markdown."""
    config, weights = subject.config, subject.weights
    data = config.data
    name = config.model.name.rpartition(":")[2] + ("d" if config.model.stem == "d" else "")
    code = _READ[form].format(name=name, num_classes=subject.num_classes, file=path.name)
    language = "sh" if form == "safetensors" else "python"
    channels = 1 if data.grayscale else 3
    step = "" if weights.step is None else f", step {weights.step}"
    kind = "moving average of the weights" if average else "weights"
    classes = subject.classes or []
    lines = [
        f"# {path.name}",
        "",
        f"{config.model.name}, {subject.num_classes} classes: the {kind} in "
        f"{Path(weights.path).name}{step}, written by resnet_dist {__version__} as {form}.",
        "",
        "## Input",
        "",
        f"RGB images{', turned grey' if data.grayscale else ''}: the shorter side resized to "
        f"{data.eval_resize_size} pixels ({data.interpolation}, antialiased), the centre "
        f"{data.eval_size} x {data.eval_size} taken, scaled to 0 ... 1, then (x - mean) / std with",
        "",
        f"    mean = {list(data.mean[:channels])}",
        f"    std  = {list(data.std[:channels])}",
        "",
        f"so float32 of shape [n, {channels}, {data.eval_size}, {data.eval_size}].",
        "",
        "## Output",
        "",
        f"Logits [n, {subject.num_classes}]. Classes by output"
        + (":" if classes else ": the file that this was made from does not say."),
        "",
        *(f"{number}. {each}" for number, each in enumerate(classes)),
        "",
        "## Reading it",
        "",
        f"```{language}",
        code,
        "```",
        "",
    ]
    if weights.settings is not None:
        wanted = ("data.root", "train.epochs", "train.global_batch_size", "optim.name", "optim.lr")
        lines += ["## Training", ""]
        lines += [f"- {key}: {weights.settings.get(key)}" for key in wanted]
        lines.append("")
    return "\n".join(lines)

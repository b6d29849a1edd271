"""What `evaluate`, `predict` and `export` work on: a network with weights, from a file or a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.run.checkpoint_files import BEST, checkpoint_folder, checkpoint_path, newest_step
from resnet_dist.system.paths import expanded
from resnet_dist.weights.architecture import guess_model, num_outputs
from resnet_dist.weights.fit import classes_of, load_exactly
from resnet_dist.weights.read import TORCHVISION, Weights, read_weights


@dataclass(frozen=True)
class Subject:
    """A network, and what its outputs mean."""

    weights: Weights
    config: Config
    """Settings of the run that made it; for another program's file defaults, and its network."""
    num_classes: int
    classes: list[str] | None
    """Names by output; None: not known."""

    @property
    def has_average(self) -> bool:
        """Whether the file also holds the moving average."""
        return self.weights.average is not None

    def network(self, *, average: bool) -> nn.Module:
        """The network with its weights, or their moving average, on the CPU in evaluation mode.

        Raises UserError if they do not fit.
        """
        model = build_model(self.config.model, num_classes=self.num_classes, seed=self.config.seed)
        load_exactly(model, self.weights.choose(average=average), self.weights.path)
        return model.eval()


def open_subject(source: str, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Subject:
    """Open a file of weights, a run folder (its best checkpoint, else its newest), or
    `torchvision:resnet50:IMAGENET1K_V2`. `files`, `overrides`: settings that win over the file's.

    Raises UserError.
    """
    weights = read_weights(_file_of(source))
    settings = dict(weights.settings or {})
    if not settings:
        guess = guess_model(weights.tensors)
        if source.startswith(TORCHVISION):
            name = source.removeprefix(TORCHVISION).partition(":")[0]
            guess = guess or {"model.name": f"{TORCHVISION}{name}"}
        if guess is None and not any(word.startswith("model.name=") for word in overrides):
            raise UserError(
                f"weights ({weights.path}): do not say which network they are of, and it is no "
                f"ResNet of this package; name it with model.name=, such as "
                f"model.name=torchvision:resnext50_32x4d"
            )
        settings = guess or {}
    config = load_config(files, overrides, base=settings).config
    outputs = num_outputs(weights.tensors)
    if config.model.is_foreign or outputs is None:
        outputs = config.model.num_classes or outputs
    if outputs is None:
        raise UserError(
            f"weights ({weights.path}): do not say how many classes they have; give "
            f"model.num_classes="
        )
    return Subject(weights, config, outputs, classes_of(weights, outputs))


def with_classes(subject: Subject, path: Path) -> Subject:
    """The subject with names of its outputs from a file, one a line. Raises UserError."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--classes ({path}): cannot be read ({error}); give a text file") from None
    names = [name for name in names if name]
    if len(names) != subject.num_classes or len(set(names)) != len(names):
        raise UserError(
            f"--classes ({path}): holds {len(set(names))} different names, and the network has "
            f"{subject.num_classes} outputs; give one name a line, in the order of the outputs"
        )
    return replace(subject, classes=names)


def _file_of(source: str) -> str:
    """The file of weights that a run folder stands for."""
    if source.startswith(TORCHVISION):
        return source
    path = expanded(source, "weights")
    if not path.is_dir():
        return source
    run = path.parent if path.name == checkpoint_folder(path).name else path
    best = checkpoint_folder(run) / BEST
    if best.is_file():
        return str(best)
    step = newest_step(run)
    if step == 0:
        raise UserError(
            f"weights ({path}): the folder holds no checkpoint; give a run folder, or a file"
        )
    return str(checkpoint_path(run, step))

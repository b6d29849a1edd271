"""The facts about each shipped config, from its file: published figures and what follows from its
settings. Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_dist.config import Config
from resnet_dist.config.load import about_of, load_config, shipped_configs
from resnet_dist.data.augment.progressive import train_size

_IMAGENET_SIZE = 224


@dataclass(frozen=True)
class Recipe:
    """A shipped config."""

    name: str
    path: Path
    config: Config
    top1: float | None
    """Published top-1, percent; None: there is no figure."""
    is_ours: bool
    """Whether this project measured it."""
    origin: str
    """Who published it."""
    hardware: str

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return self.config.train.epochs

    @property
    def passes(self) -> float | None:
        """Training images seen in all, millions; None where the data are the user's."""
        samples = self.config.data.num_train_samples
        return None if samples is None else samples * self.epochs / 1e6

    @property
    def work(self) -> float | None:
        """As `passes`, but an image of S x S pixels counts as (S / 224)**2: about what it costs."""
        if self.passes is None:
            return None
        augment, full_size = self.config.augment, self.config.data.train_size
        sizes = [train_size(augment, full_size, epoch) for epoch in range(self.epochs)]
        shares = [(size / _IMAGENET_SIZE) ** 2 for size in sizes]
        return self.passes * sum(shares) / len(shares)


def recipes() -> list[Recipe]:
    """All of them, by name."""
    found = []
    for name, path in sorted(shipped_configs().items()):
        about = about_of(path)
        figure = about.get("top1")
        found.append(
            Recipe(
                name=name,
                path=path,
                config=load_config([name]).config,
                top1=None if figure is None else float(figure),
                is_ours="measured" in about,
                origin=about["origin"],
                hardware=about["hardware"],
            )
        )
    return found

"""ImageNet's 1,000 classes: the WordNet ids that its folders are named by."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CLASSES = Path(__file__).with_name("imagenet_classes.txt")


def read_class_ids() -> dict[int, str]:
    """The WordNet id of each ILSVRC2012_ID, 1 to 1000."""
    lines = (line.split() for line in _CLASSES.read_text("ascii").splitlines())
    return {int(number): wnid for number, wnid in lines}


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids in the order of a network's outputs, which is that of the sorted folders."""
    return tuple(sorted(read_class_ids().values()))


@cache
def imagenet_words() -> dict[str, str]:
    """The name of each class by its WordNet id, as torchvision has them ("tench")."""
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return dict(zip(imagenet_classes(), names, strict=True))

"""An index of no files, for batches of noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SIDE = 256


@dataclass(frozen=True)
class SyntheticIndex:
    """Stands for an index where there is none; by default as large as ImageNet's."""

    num_samples: int
    num_classes: int = 1000
    fingerprint: str = "synthetic"
    classes: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", [f"class{i:04d}" for i in range(self.num_classes)])

    def __len__(self) -> int:
        return self.num_samples

    @property
    def labels(self) -> NDArray[np.int64]:
        """0 for all, in no memory: batches have labels of their own."""
        return np.broadcast_to(np.zeros((), np.int64), self.num_samples)

    @property
    def heights(self) -> NDArray[np.int32]:
        """The same for all, in no memory."""
        return np.broadcast_to(np.full((), _SIDE, np.int32), self.num_samples)

    @property
    def widths(self) -> NDArray[np.int32]:
        """As `heights`."""
        return self.heights


SYNTHETIC_TRAIN = SyntheticIndex(1_281_167)
SYNTHETIC_VAL = SyntheticIndex(50_000)

"""Counter-based randomness: every draw is a pure function of (seed, stream, epoch, position).

Owns the mapping from those integers to uniform numbers, with NumPy's Philox4x64-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011). Only its raw 64-bit words are used: NumPy
promises their stability across versions, which it does not for `Generator`'s methods. Holds no
state, so there is none to save and none to lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORDS_PER_BLOCK = 4


class Stream(IntEnum):
    """Independent streams of one seed. Numbers are part of the format: never reuse one."""

    INIT = 0
    ORDER = 1
    CROP_FLIP = 2
    SYNTHETIC = 3
    SHAPES = 4
    MIX = 16
    ERASE = 17
    OPERATIONS = 18
    SPREAD = 19
    LIGHTING = 20
    AUGMIX = 21
    DROP_PATH = 22
    COLOUT = 23
    FIRST_FLIP = 24
    SHARDS = 32
    BLOCKS = 33
    BLOCK_SPREAD = 34
    FORWARD = 48


def random_words(
    seed: int, stream: Stream, epoch: int, *, start: int, count: int, words: int
) -> NDArray[np.uint64]:
    """64-bit words for the positions [start, start + count) of an epoch.

    Returns `[count, words]` uint64; `words` is a multiple of 4. A row depends on its position
    alone, not on where the range starts.
    """
    assert words % WORDS_PER_BLOCK == 0
    assert start >= 0
    assert count >= 0
    key = np.array([seed, (int(stream) << 48) | epoch], dtype=np.uint64)
    blocks = words // WORDS_PER_BLOCK
    generator = np.random.Philox(key=key, counter=np.array([start * blocks, 0, 0, 0], np.uint64))
    raw = generator.random_raw(count * words)
    return np.asarray(raw, dtype=np.uint64).reshape(count, words)


def to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map 64-bit words to float64 in [0, 1) with 53 random bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Draw:
    """Random numbers for the positions [start, start + count) of an epoch, from any stream."""

    seed: int
    epoch: int
    start: int
    count: int

    def uniform(self, stream: Stream, words: int) -> NDArray[np.float64]:
        """`[count, words]` in [0, 1); `words` is a multiple of 4."""
        drawn = random_words(
            self.seed, stream, self.epoch, start=self.start, count=self.count, words=words
        )
        return to_uniform(drawn)

    def normal(self, stream: Stream, numbers: int) -> NDArray[np.float64]:
        """`[count, numbers]` of mean 0 and deviation 1 (Box and Muller 1958), in multiples of
        2**-16: the same with every version of log and cos."""
        blocks = -(-2 * numbers // WORDS_PER_BLOCK)
        uniform = self.uniform(stream, WORDS_PER_BLOCK * blocks)[:, : 2 * numbers]
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:, ::2]))
        return np.rint(radius * np.cos(2.0 * np.pi * uniform[:, 1::2]) * 2.0**16) * 2.0**-16


def permutation(
    seed: int, epoch: int, num_samples: int, *, stream: Stream = Stream.ORDER
) -> NDArray[np.int64]:
    """A permutation of range(num_samples), `[num_samples]` int64, for one epoch.

    Sorts random 64-bit keys (stable, so that equal keys cannot make it depend on the platform).
    """
    blocks = -(-num_samples // WORDS_PER_BLOCK)
    keys = random_words(seed, stream, epoch, start=0, count=blocks, words=WORDS_PER_BLOCK).reshape(
        -1
    )[:num_samples]
    return stable_order(keys)


def stable_order(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`np.argsort(keys, kind="stable")` of `[n]` uint64, n < 2**32, in a fraction of the time.

    Sorts the keys' upper bits with the positions in place of the lower ones, which NumPy does with
    vector instructions and in place; keys that agree in the upper bits are then put in order.
    """
    bits = np.uint64(max(len(keys) - 1, 1).bit_length())
    mask = (np.uint64(1) << bits) - np.uint64(1)
    packed = (keys & ~mask) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & mask).astype(np.int64)
    packed >>= bits
    equal = np.flatnonzero(packed[1:] == packed[:-1])
    if len(equal):  # their places stay together: the upper bits are part of the key
        places = np.union1d(equal, equal + 1)
        among = order[places]
        order[places] = among[np.argsort(keys[among], kind="stable")]
    return order


def derive_seed(seed: int, stream: Stream, *, epoch: int = 0, position: int = 0) -> int:
    """A 63-bit seed for libraries that keep their own generator (weight initialisation)."""
    word = random_words(seed, stream, epoch, start=position, count=1, words=WORDS_PER_BLOCK)[0, 0]
    return int(word >> np.uint64(1))

"""A changed bit in any file of a run folder or of a data set is noticed, or changes nothing.

What is compared is what a run computes: the weights at its end.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from resnet_dist.prepare.__main__ import main as prepare
from tests.fuzz.starts import Tally, judge, start, weights
from tests.launch import TINY

pytestmark = pytest.mark.slow

SETTINGS = [
    *(*TINY, "train.epochs=2", "data.num_workers=1", "checkpoint.every_steps=2"),
    *("train.ema_decay=0.9", "checkpoint.keep_last=2"),
]


def damage(path: Path, tally: Tally) -> str:
    """Flip a bit, cut the end, or append; what was done."""
    content = bytearray(path.read_bytes())
    kind = tally.random.choice(["flip"] * 6 + ["cut", "append"])
    if kind == "flip" and content:
        at = tally.random.randrange(len(content))
        content[at] ^= 1 << tally.random.randrange(8)
        kind = f"bit flipped in byte {at}"
    elif kind == "cut" and content:
        del content[tally.random.randrange(len(content)) :]
        kind = f"cut to {len(content)} bytes"
    else:
        content += tally.random.randbytes(tally.random.randrange(1, 50))
        kind = f"{len(content)} bytes with rubbish at the end"
    path.unlink()  # a checkpoint and best.pt are one file under two names
    path.write_bytes(content)
    return f"{path.name}: {kind}"


def same_weights(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = weights(run)
    return all(torch.equal(found[name], value) for name, value in expected.items())


def test_of_a_run_folder(tmp_path: Path, run_root: Path) -> None:
    """Stopped half-way, damaged, resumed: the end is that of the uninterrupted run."""
    settings = [*SETTINGS, f"data.root={run_root}", f"data.cache_dir={tmp_path / 'cache'}"]
    whole, half = tmp_path / "whole", tmp_path / "half"
    for run, more in ((whole, []), (half, ["train.max_steps=5"])):
        ended = start([*settings, f"run.dir={run}", *more], tmp_path / "log")
        assert ended.codes == [0], ended.output
    expected = weights(whole)
    tally = Tally("run folder")
    for _ in tally.numbers():
        run = tmp_path / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(half, run)
        files = sorted(path for path in run.rglob("*") if path.is_file())
        what = damage(tally.random.choice(files), tally)
        ended = start([*settings, f"run.dir={run}"], tmp_path / "log")
        how = judge(ended, what)
        assert how == "is rejected" or same_weights(run, expected), f"{what}\n{ended.output}"
        tally.counts[f"{'noticed and ' * ('quarantined' in ended.output)}{how}"] += 1


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_of_a_data_set(tmp_path: Path, run_root: Path, kind: str) -> None:
    """Index, manifests and columns of a folder's cache, and every file of a packed data set.

    Pixels inside a JPEG have no checksum that a loader reads: `prepare verify` looks at them.
    """
    root, cache = tmp_path / "data", tmp_path / "cache"
    if kind == "packed":
        assert prepare(["folder", str(run_root), "--out", str(root)]) == 0
    else:
        shutil.copytree(run_root, root)
    settings = [*SETTINGS, f"data.root={root}", f"data.cache_dir={cache}", "train.max_steps=3"]
    ended = start([*settings, f"run.dir={tmp_path / 'whole'}"], tmp_path / "log")
    assert ended.codes == [0], ended.output
    expected = weights(tmp_path / "whole")
    saved = tmp_path / "saved"
    place = root if kind == "packed" else cache
    shutil.copytree(place, saved)
    tally = Tally(f"data set, {kind}")
    for number in tally.numbers():
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        files = sorted(p for p in place.rglob("*") if p.is_file() and p.suffix not in (".tar",))
        what = damage(tally.random.choice(files), tally)
        run = tmp_path / "runs" / str(number)
        ended = start([*settings, f"run.dir={run}"], tmp_path / "log")
        how = judge(ended, what)
        assert how == "is rejected" or same_weights(run, expected), f"{what}\n{ended.output}"
        tally.counts[how] += 1

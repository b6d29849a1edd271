"""The order of an epoch in a file that all processes of a node share."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist import rng
from resnet_dist.data import shared_order
from resnet_dist.data.shared_order import shared_permutation
from tests.launch import share_fork_server

N = 150_000


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own; returns the folder of the orders in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"resnet_dist-{os.getuid()}"


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 63))
def test_stable_order_is_numpys(keys: list[int], shift: int) -> None:
    """Also with many equal keys, and with keys that differ in their lowest bits only."""
    for array in (np.array(keys, np.uint64), np.array(keys, np.uint64) >> np.uint64(shift)):
        np.testing.assert_array_equal(rng.stable_order(array), np.argsort(array, kind="stable"))


def test_the_order_is_the_one_it_always_was() -> None:
    """Golden values: a change would change every run that is resumed."""
    assert rng.permutation(0, 0, 10).tolist() == GOLDEN_10
    assert rng.permutation(7, 3, 100_000)[:5].tolist() == GOLDEN_100K
    keys = rng.random_words(7, rng.Stream.ORDER, 3, start=0, count=25_000, words=4).reshape(-1)
    np.testing.assert_array_equal(rng.permutation(7, 3, 100_000), np.argsort(keys, kind="stable"))


GOLDEN_10 = [0, 8, 6, 9, 5, 2, 3, 1, 7, 4]
GOLDEN_100K = [72580, 85313, 26763, 19889, 825]


def test_it_is_mapped_from_a_file(temporary: Path) -> None:
    expected = rng.permutation(3, 5, N)
    for _ in range(2):
        order = shared_permutation(3, 5, N)
        assert order.dtype == np.int32
        assert not order.flags.writeable
        np.testing.assert_array_equal(order, expected)
    assert [path.name for path in temporary.glob("order-*")] == [f"order-v1-3-5-{N}"]
    maps = Path("/proc/self/maps").read_text()
    assert f"order-v1-3-5-{N}" in maps
    assert (temporary.stat().st_mode & 0o777) == 0o700


def test_few_samples_need_no_file(temporary: Path) -> None:
    np.testing.assert_array_equal(shared_permutation(0, 1, 500), rng.permutation(0, 1, 500))
    assert not temporary.exists()


def send_order(temporary: Path, sender: Connection) -> None:
    share_fork_server()
    tempfile.tempdir = str(temporary.parent)
    calls = []
    real = rng.permutation
    rng.permutation = lambda *arguments: calls.append(1) or real(*arguments)  # type: ignore[assignment,func-returns-value]
    order = shared_permutation(1, 2, N)
    sender.send((int(order[:1000].sum()), len(calls)))


def test_one_of_many_processes_computes(temporary: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=send_order, args=(temporary, sender)) for _ in range(5)]
    for process in processes:
        process.start()
    results = [receiver.recv() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {result[0] for result in results} == {int(rng.permutation(1, 2, N)[:1000].sum())}
    assert sum(result[1] for result in results) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "zeros", "empty"])
def test_a_damaged_file_is_made_again(temporary: Path, damage: str) -> None:
    expected = np.array(shared_permutation(0, 0, N))
    (path,) = temporary.glob("order-*")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[1234] ^= 1
    elif damage == "cut":
        del content[-100:]
    else:
        content = bytearray(len(content) if damage == "zeros" else 0)
    path.unlink()  # the mapping of the first is still in use
    path.write_bytes(content)
    np.testing.assert_array_equal(shared_permutation(0, 0, N), expected)
    np.testing.assert_array_equal(np.frombuffer(path.read_bytes()[:-4], np.int32), expected)


def test_whatever_is_wrong_with_the_folder_the_order_is_right(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rng.permutation(0, 0, N)

    def check() -> None:
        np.testing.assert_array_equal(shared_permutation(0, 0, N), expected)

    temporary.write_text("a file in the way")
    check()
    temporary.unlink()
    temporary.symlink_to(tmp_path)  # another user's trap
    check()
    temporary.unlink()
    temporary.mkdir()
    temporary.chmod(0o777)
    check()
    assert not list(temporary.iterdir())
    temporary.chmod(0o700)
    (temporary / f"order-v1-0-0-{N}").mkdir()
    check()
    (temporary / f"order-v1-0-0-{N}").rmdir()
    monkeypatch.setattr(shared_order, "_LONGEST_WAIT_S", 0.05)
    with (temporary / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a process that hangs
        check()
    check()
    assert len(list(temporary.glob("order-*"))) == 1
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    check()


def test_old_files_are_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_order, "_MOST_BYTES", 3 * 4 * N + 100)
    for epoch in range(5):
        if epoch:
            shared_permutation(0, 0, N)  # stays, as it is in use
        shared_permutation(0, epoch, N)
    names = sorted(path.name for path in temporary.glob("order-*"))
    assert names == [f"order-v1-0-{epoch}-{N}" for epoch in (0, 3, 4)]

"""A file system that lacks a protective extra is warned of, once; nothing ends. The system calls
are mocked: no such file system can be mounted here."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from resnet_dist.run.lock import own_run_folder, owner_of
from resnet_dist.system import files


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_in_a_folder_without_locks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with own_run_folder(tmp_path / "run") as ownership:
            ownership.check()
            owner = owner_of(tmp_path / "run")
            assert owner is not None, "whoever is named there may well run"
            assert owner.pid == os.getpid()
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "nothing keeps two processes from using run.lock at once" in said


def test_a_folder_whose_names_cannot_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    for text in (b"one", b"two"):
        files.replace_file(tmp_path / "file", lambda file, text=text: file.write(text))
    assert (tmp_path / "file").read_bytes() == b"two"
    said = capsys.readouterr().err
    assert said.count("a power cut may lose the newest files there") == 1


def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(tmp_path)

"""Files that survive a full disk and a failed write."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.system.files import AppendOnlyFile, replace_file


def test_a_full_disk_loses_no_record_and_only_flush_insists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class FullDisk:
        """Takes 3 bytes, then none, until there is room again."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 3

        def write(self, data: bytes) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = min(len(data), self.room)
            self.room -= count
            return int(self.file.write(data[:count]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    file = AppendOnlyFile(tmp_path / "records")
    full = FullDisk(file._file)
    file._file = full  # type: ignore[assignment]
    file.append(b"first\n")
    file.append(b"second\n")
    assert (tmp_path / "records").read_bytes() == b"fir"
    with pytest.raises(OSError, match="No space"):
        file.flush()
    assert capsys.readouterr().err.count("warning") == 1
    full.room = 1000
    file.append(b"third\n")
    file.close()
    file.close()
    assert (tmp_path / "records").read_bytes() == b"first\nsecond\nthird\n"


def test_replace_file_leaves_the_old_one_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        replace_file(path, lambda file: file.write(b"new") // 0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""`launch.logs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import logs
from tests.unit.launch.records.test_submissions import written_submission


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert logs.main([str(run_dir)]) == 2
    assert f"error: run ({run_dir}): no such folder" in capsys.readouterr().err
    older, newer = written_submission(run_dir, 1), written_submission(run_dir, 2, "8")
    assert logs.main([str(run_dir)]) == 2
    assert "node 0 has printed nothing yet" in capsys.readouterr().err
    older.slurm_folder.mkdir()
    older.log().write_text("old\n")
    assert logs.main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"==> {older.log()} <==\nold\n"
    newer.slurm_folder.mkdir()
    newer.log().write_text("first\nlast\n")
    newer.log(3).write_text("third node\n")
    assert newer.log(3).name == "8_3_log.out"
    assert logs.main([str(run_dir), "-n", "1"]) == 0
    assert capsys.readouterr().out.endswith("<==\nlast\n")
    assert logs.main([str(run_dir), "--node", "3"]) == 0
    assert capsys.readouterr().out.endswith("third node\n")
    assert logs.main([str(run_dir), "--node", "4"]) == 2

"""What a run folder may hold when it is submitted again."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.submission.checks import check_folder
from resnet_dist.errors import UserError
from resnet_dist.run.folder import write_end
from resnet_dist.run.outcome import Outcome


def test_a_finished_run_is_trained_for_longer_on_request(tmp_path: Path) -> None:
    write_end(tmp_path, Outcome.FINISHED, {"step": 20})
    said = r"holds a finished run; .*run\.allow_config_change=true and"
    with pytest.raises(UserError, match=said):
        check_folder(tmp_path, has_slurm=False)
    assert check_folder(tmp_path, has_slurm=False, may_change=True) == []

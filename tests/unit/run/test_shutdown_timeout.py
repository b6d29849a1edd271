"""How long torchrun waits for ranks that save before it kills them."""

from __future__ import annotations

import json
from pathlib import Path

from resnet_dist.run.folder import shutdown_timeout_s


def test_it_follows_from_the_measured_saves(tmp_path: Path) -> None:
    assert shutdown_timeout_s(tmp_path) == 30
    records = [{"checkpoint/write_s": 4.1}, {"train/loss": 1.0}, {"checkpoint/write_s": 21.2}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert shutdown_timeout_s(tmp_path) == 30 + 64

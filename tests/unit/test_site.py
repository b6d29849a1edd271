"""The documentation as a site: every link and anchor leads somewhere, and nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        assert re.findall(r'<(?:script|img)[^>]+src="https?:', text) == [], page.name
        assert re.findall(r'<link[^>]+href="https?:[^>]*stylesheet', text) == [], page.name

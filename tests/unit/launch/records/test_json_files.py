"""JSON files that are replaced whole, and files of one object per line."""

from __future__ import annotations

import json
from pathlib import Path

from launch.records.json_files import append_line, read_json, read_lines, write_json


def test_half_written_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": \n7\n{"a": 2}\n{"a": 3}')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1')
    assert read_lines(path) == []
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n')
    assert read_lines(path) == [{"a": 1}]
    assert read_lines(tmp_path / "none") == []


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": "\u00e4"})
    assert read_json(path) == {"b": "\u00e4"}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
    for content in ("{", json.dumps([1]), ""):
        path.write_text(content)
        assert read_json(path) is None


def test_the_end_of_a_long_file_has_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number in range(100):
        append_line(path, {"number": number})
    numbers = [line["number"] for line in read_lines(path, last_bytes=40)]
    assert numbers == [98, 99]
    assert len(read_lines(path, last_bytes=10**6)) == 100

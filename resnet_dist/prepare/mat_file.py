"""The least of MATLAB's level 5 MAT format that ImageNet's meta.mat needs.

Reads one structure array into a list of dictionaries: text and numbers; fields of other kinds are
None. Source: MathWorks, "MAT-File Format", level 5. Little-endian files only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_HEADER_BYTES = 128
_MOST_BYTES = 64 << 20  # meta.mat has some 100 KB; a file that unpacks to more is not it
_INT8, _UTF8, _UTF16, _MATRIX, _COMPRESSED = 1, 16, 17, 14, 15
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
_NUMBERS |= {12: "<i8", 13: "<u8"}
_STRUCT_CLASS, _CHAR_CLASS, _FIRST_NUMBER_CLASS = 2, 4, 6


@dataclass(frozen=True)
class _Element:
    """A tagged piece of data."""

    kind: int
    data: bytes


def read_struct_array(content: bytes, variable: str) -> list[dict[str, Any]]:
    """The elements of a structure array, each a dictionary of its fields: str, float, or None.

    Raises ValueError if `content` is no such file or does not hold the variable.
    """
    if len(content) < _HEADER_BYTES or content[126:128] != b"IM":
        raise ValueError("not a little-endian MAT file of level 5")
    for element in _elements(content[_HEADER_BYTES:]):
        if element.kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                data = unpacker.decompress(element.data, _MOST_BYTES)
            except zlib.error as error:
                raise ValueError(f"damaged compressed data ({error})") from None
            (element,) = _elements(data)
        if element.kind == _MATRIX:
            parts = list(_elements(element.data))
            if len(parts) >= 3 and parts[2].data.decode("latin-1") == variable:
                return _read_struct(parts)
    raise ValueError(f"holds no variable {variable}")


def _elements(data: bytes) -> Iterator[_Element]:
    """Elements one after the other: a tag (kind and length, 4 bytes each), the data, and padding
    to 8 bytes; or, where they have at most 4 bytes, all in 8 ("small data element")."""
    at = 0
    while at + 8 <= len(data):
        word = int.from_bytes(data[at : at + 4], "little")
        if word >> 16:
            kind, length, start = word & 0xFFFF, word >> 16, at + 4
            after = at + 8
        else:
            kind, start = word, at + 8
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            padding = 0 if kind == _COMPRESSED else -length % 8
            after = start + length + padding
        if start + length > len(data):
            raise ValueError("is cut off")
        yield _Element(kind, data[start : start + length])
        at = after


def _read_struct(parts: list[_Element]) -> list[dict[str, Any]]:
    if _class_of(parts) != _STRUCT_CLASS or len(parts) < 5:
        raise ValueError("the variable is no structure array")
    width = int.from_bytes(parts[3].data, "little")
    if width < 1 or len(parts[4].data) % width:
        raise ValueError("damaged field names")
    blob = parts[4].data
    names = [
        blob[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(blob), width)
    ]
    values = [_read_value(part) for part in parts[5:]]
    if len(values) != int(np.prod(_shape_of(parts))) * len(names):
        raise ValueError("the number of fields does not match the shape")
    return [
        dict(zip(names, values[at : at + len(names)], strict=True))
        for at in range(0, len(values), len(names))
    ]


def _class_of(parts: list[_Element]) -> int:
    return parts[0].data[0] if parts and parts[0].data else 0


def _shape_of(parts: list[_Element]) -> Any:
    return np.frombuffer(parts[1].data, "<i4")


def _read_value(element: _Element) -> str | float | None:
    """Text, the first of some numbers, or None for what is empty or of another kind."""
    parts = list(_elements(element.data)) if element.kind == _MATRIX else []
    if len(parts) < 4:
        return None
    data = parts[3]
    if _class_of(parts) == _CHAR_CLASS:
        if data.kind in (_UTF8, _INT8, 2):
            return data.data.decode("utf-8", "replace")
        if data.kind in (4, _UTF16):
            return data.data.decode("utf-16-le", "replace")
    elif _class_of(parts) >= _FIRST_NUMBER_CLASS and data.kind in _NUMBERS:
        numbers = np.frombuffer(data.data, _NUMBERS[data.kind])
        return float(numbers[0]) if len(numbers) else None
    return None

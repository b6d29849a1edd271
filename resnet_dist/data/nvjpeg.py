"""nvJPEG, by which DALI decodes on a GPU: the right one is loaded, and its version known.

DALI's decoder opens it by name. So it takes what was loaded under that name before, by torchvision
for one, or the one of the machine's CUDA, which may be older than the one that came with DALI.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NEEDED = (13, 2)
"""First version that decodes a part of an image with fancy upsampling; with an older one the
decoder leaves nearly every JPEG to the CPU."""


@cache
def load_nvjpeg() -> tuple[int, int] | None:
    """Load the one that was installed with DALI, before anybody asks for it by name. Returns the
    version (major, minor) of the one that is found by name then; None if there is none."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libnvjpeg.so.*")):
            try:
                ctypes.CDLL(str(path))
                return _version(ctypes.CDLL(path.name))
            except OSError:  # for another system, or cut off
                continue
    return None


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    """By `nvjpegGetProperty`, whose first two properties are these (CUDA's library_types.h)."""
    numbers = []
    for what in (0, 1):
        value = ctypes.c_int()
        if library.nvjpegGetProperty(what, ctypes.byref(value)):
            raise OSError("nvjpegGetProperty failed")
        numbers.append(value.value)
    return numbers[0], numbers[1]


def fallback_note() -> str | None:
    """What to say if DALI cannot decode parts of JPEGs on the GPU; None if it can."""
    version = load_nvjpeg()
    if version is not None and version >= NEEDED:
        return None
    found = "none was found" if version is None else f"{version[0]}.{version[1]} is loaded"
    return (
        f"DALI decodes JPEGs on the CPU: dali.fancy_upsampling=true needs nvJPEG "
        f"{NEEDED[0]}.{NEEDED[1]} or newer, and {found}; pip install 'nvidia-nvjpeg>=13.2', or set "
        f"dali.fancy_upsampling=false (slightly different pixels)"
    )

"""A compiled library as a file: PyTorch loads it, and its C functions tell what is compiled in.

It knows no Python, so that one build serves every version of Python. Loading it registers the operators.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

import torch

SUFFIX = ".pyd" if sys.platform == "win32" else ".so"


class Binary:
    """A compiled library that is loaded.

    Args:
        path: its file.
        kind: what messages call it: "compiled" or "CUDA".

    Raises:
        ImportError: the file cannot be loaded, or is no library of modfast.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._kind = kind
        try:
            if path.exists() and not path.is_file():  # to open a named pipe would take for ever
                raise OSError(f"{path} is no file")
            if _is_cut_off(path):
                raise OSError(f"{path}: the end of the file is missing")
            torch.ops.load_library(str(path))
            self._functions = ctypes.CDLL(str(path.resolve()))
        except OSError as error:
            # PyTorch says only that it could not; the cause says why.
            raise self.not_loaded(error.__cause__ or error) from error

    def text(self, name: str) -> str:
        """Return what a function of the library, which takes nothing, tells."""
        function = self._function(name)
        function.restype = ctypes.c_char_p
        told: bytes = function()
        return told.decode(errors="backslashreplace")  # it may quote a variable of the environment

    def texts(self, name: str) -> list[str]:
        """Return the parts of such a text, which commas separate."""
        return [part for part in self.text(name).split(",") if part]

    def number(self, name: str) -> int:
        """Return the number that a function of the library, which takes nothing, tells."""
        function = self._function(name)
        function.restype = ctypes.c_uint64
        told: int = function()
        return told

    def give(self, name: str, number: int) -> None:
        """Call a function of the library that takes a number."""
        function = self._function(name)
        function.restype = None
        function(ctypes.c_uint64(number))

    def _function(self, name: str) -> ctypes._NamedFuncPointer:
        try:
            # By item, which unlike an attribute is an object of this call alone: threads share nothing.
            return self._functions[f"modfast_{name}"]
        except AttributeError as error:
            raise self.not_loaded(error) from error

    def not_loaded(self, reason: object) -> ImportError:
        """Return an error for a library that does not serve, which says why and how to get one that does."""
        return ImportError(
            f"modfast's {self._kind} library cannot be loaded ({reason}). "
            "In a checkout run: pip install --no-build-isolation -e . "
            "Elsewhere run: pip install --force-reinstall --no-deps modfast"
        )


def _is_cut_off(path: Path) -> bool:
    """Return whether an ELF file ends before what its header announces; False for files of other kinds.

    The system's loader does not look: the first access to what is missing would end the process.
    """
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, 2)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return False
        # The header says where the tables of segments and sections lie, and the sizes and numbers of entries.
        segments, sections = struct.unpack_from("<QQ", header, 32)
        segment_size, num_segments, section_size, num_sections = struct.unpack_from("<HHHH", header, 54)
        ends = [segments + segment_size * num_segments, sections + section_size * num_sections]
        file.seek(segments)
        for _ in range(num_segments):
            entry = file.read(segment_size)
            if len(entry) < 40:
                return True
            # Offset in the file, two addresses, length in the file.
            start, _, _, length = struct.unpack_from("<QQQQ", entry, 8)
            ends.append(start + length)
    return bool(max(ends) > size)

"""Files of named tensors, single or in shards, whose names and shapes are known before tensors are read."""

from __future__ import annotations

import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modfast.files import open_to_read, read_json

from .pickled import load_pickled, memory_of, state_dict_in, tensor_entries, why_unreadable

# The names of weight files in a folder of transformers, in the order in which it looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


class TensorFile(ABC):
    """Named tensors that are read one by one.

    Attributes:
        path: the file, or the index of the shards.
        names: the names of the tensors; those of a state_dict in its order.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, list(names)

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading its values."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype | str:
        """Return the dtype of a tensor, or the file's own name for a dtype that PyTorch may lack."""

    @abstractmethod
    def read(self, name: str, place: int | None = None) -> Tensor:
        """Return a tensor, or only its entry at ``place`` along the first dimension, on the CPU."""

    def memory(self, name: str) -> object:
        """Return a key that is equal for tensors in the same memory; None if no tensors share memory."""
        return None

    def unreadable(self, name: str) -> str | None:
        """Return why an entry is no dense tensor, in words that follow its name; None for a dense one."""
        return None


class _Head(NamedTuple):
    """What is known of an entry of a file before its values are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    memory: object = None
    unreadable: str | None = None


def _head(value: object, file: Path | None = None) -> _Head:
    reason = why_unreadable(value)
    if not isinstance(value, Tensor) or value.is_nested:  # neither has a shape
        return _Head((), type(value).__name__, None, reason)
    # Files that are read in turn may get the same addresses, so the file is part of the key.
    memory = None if reason else memory_of(value) if file is None else (file, memory_of(value))
    return _Head(tuple(value.shape), value.dtype, memory, reason)


class _Headed(TensorFile):
    """Tensors whose heads are known."""

    _heads: dict[str, _Head]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._heads[name].shape

    def dtype(self, name: str) -> torch.dtype | str:
        return self._heads[name].dtype

    def memory(self, name: str) -> object:
        return self._heads[name].memory

    def unreadable(self, name: str) -> str | None:
        return self._heads[name].unreadable

    def check_readable(self, name: str) -> None:
        """Raise ``ValueError`` if the entry is no dense tensor."""
        reason = self.unreadable(name)
        if reason is not None:
            raise ValueError(f"{self.path}: {name!r} {reason}")


class StateDict(_Headed):
    """A state_dict that is in memory already."""

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        super().__init__(path, list(state))
        self._state = state
        self._heads = {name: _head(value) for name, value in state.items()}

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        self.check_readable(name)
        tensor: Tensor = self._state[name].detach()
        return tensor if place is None else tensor[place]


class Shards(_Headed):
    """Tensors in one or several files, one open at a time."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        self._files = files
        self._heads = {}
        for file in sorted(dict.fromkeys(files.values()), key=lambda file: _natural(file.name)):
            heads = self._read_heads(file)
            for name in (name for name, where in files.items() if where == file):
                if name not in heads:
                    raise ValueError(f"{path} is damaged: {file.name} holds no {name!r}")
            own = {name: head for name, head in heads.items() if files.get(name) == file}
            self._heads.update({name: head for name, head in own.items() if head is not None})
        super().__init__(path, list(self._heads))

    @abstractmethod
    def _read_heads(self, file: Path) -> Mapping[str, _Head | None]:
        """Return the head of every entry of a file, in its order; None for entries that hold no tensor."""


class SafetensorsShards(Shards):
    """Files of safetensors. Single tensors can be read; names are sorted, since the files have no order."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        super().__init__(path, files)
        self.names.sort(key=_natural)

    def _read_heads(self, file: Path) -> Mapping[str, _Head | None]:
        with _open_safetensors(file) as opened:
            heads: dict[str, _Head | None] = {}
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                kind = part.get_dtype()
                heads[name] = _Head(tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(kind, kind))
        return heads

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        with _open_safetensors(self._files[name]) as opened:
            tensor: Tensor = opened.get_tensor(name) if place is None else opened.get_slice(name)[place]
            # A copy, since the file is mapped into memory and may change or be deleted.
            return tensor.clone()


class PickledShards(Shards):
    """Files of ``torch.save``, read whole; the last one stays in memory. Names keep the saved order."""

    _last: tuple[Path, Mapping[str, Any]] | None = None

    def _read_heads(self, file: Path) -> Mapping[str, _Head | None]:
        state = _load_shard(file, mapped=True)
        heads = {name: _head(value, file) for name, value in tensor_entries(state).items()}
        return {name: heads.get(name) for name in state}

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        self.check_readable(name)
        file = self._files[name]
        if self._last is None or self._last[0] != file:
            self._last = None  # so that there are never two in memory
            self._last = file, _load_shard(file)
        tensor: Tensor = self._last[1][name].detach()
        return (tensor if place is None else tensor[place]).clone()


def _load_shard(file: Path, *, mapped: bool = False) -> Mapping[str, Any]:
    state = load_pickled(file, mapped=mapped)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{file} is no part of a state_dict, a mapping of names to tensors")
    return state


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder holds weights as transformers saves them."""
    return any((folder / name).exists() for name in _WEIGHTS)


def open_tensors(path: Path, contents: Any = None) -> TensorFile:
    """Open the tensors of a file, of an index of shards, or of a folder of transformers, running no code.

    Args:
        path: the file, the index or the folder.
        contents: what :func:`load_pickled` returned for the file, if it has been read already.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged, or holds something else.
        ImportError: the file needs the package safetensors, which is not installed.
    """
    if path.is_dir():
        path = next(path / name for name in _WEIGHTS if (path / name).exists())
    if path.name.endswith(".index.json"):
        files = _shards(path)
        if all(file.suffix == ".safetensors" for file in files.values()):
            return SafetensorsShards(path, files)
        return PickledShards(path, files)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as opened:
            return SafetensorsShards(path, dict.fromkeys(opened.keys(), path))
    return StateDict(path, state_dict_in(load_pickled(path) if contents is None else contents, path))


def beside(path: Path, name: str) -> dict[str, Any]:
    """Return the contents of the JSON file ``name`` in a folder, or beside a file; empty if it is absent.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no file.
    """
    file = (path if path.is_dir() else path.parent) / name
    # Whatever lies there is opened: a folder or a broken link is an error, not the absence of settings.
    contents = read_json(file) if os.path.lexists(file) else {}
    if not isinstance(contents, dict):
        raise ValueError(f"{file} is damaged: it must hold a JSON object")
    return contents


def _shards(index: Path) -> dict[str, Path]:
    """Return the file that holds each tensor, according to an index."""
    contents = read_json(index)
    where = contents.get("weight_map") if isinstance(contents, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} is damaged: it must map names to files (weight_map)")
    files = {}
    for name, file in where.items():
        if not isinstance(file, str) or os.path.basename(file) != file or file in ("", ".", ".."):
            raise ValueError(f"{index} is damaged: {file!r} is no name of a file beside it")
        files[name] = index.parent / file
    for file in dict.fromkeys(files.values()):
        if not file.exists():
            raise FileNotFoundError(f"{index} names {file.name}, which is not there")
    return files


def _open_safetensors(path: Path) -> Any:
    try:
        library = importlib.import_module("safetensors")
    except ImportError as error:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from error
    open_to_read(path).close()  # the package would wait for what is written to a pipe
    try:
        return library.safe_open(path, framework="pt")
    except OSError:
        raise
    except Exception as error:  # the package raises a type of its own
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


# Other dtypes are named as in the file: PyTorch may lack them, and they are no weights as they stand.
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}

"""Files of named tensors, in one piece or in shards: what is in them is known before it is read."""

from __future__ import annotations

import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.files import read_json

# What transformers calls the weights of a folder, in the order in which it looks for them.
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
        names: of the tensors; those of a state_dict in its order.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, list(names)

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without its numbers."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""

    @abstractmethod
    def read(self, name: str, place: int | None = None) -> Tensor:
        """A tensor, or the one of that place along its first dimension; on the CPU."""

    def memory(self, name: str) -> object:
        """The same for tensors that share their memory; None where none do."""
        return None


class StateDict(TensorFile):
    """A state_dict in memory, of which nothing needs to be read."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        super().__init__(path, list(state))
        self._state = state

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:  # noqa: D102
        return self._state[name].dtype

    def memory(self, name: str) -> object:  # noqa: D102
        return memory_of(self._state[name])

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        tensor = self._state[name].detach()
        return tensor if place is None else tensor[place]


class Shards(TensorFile):
    """Tensors in one or several files, of which one is open at a time."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        super().__init__(path, sorted(files, key=_natural))
        self._files = files
        self._heads: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for file in dict.fromkeys(files.values()):
            self._heads.update(self._read_heads(file))
        for name, file in files.items():
            if name not in self._heads:
                raise ValueError(f"{path} is damaged: {file.name} holds no {name!r}")

    @abstractmethod
    def _read_heads(self, file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every tensor of a file."""

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return self._heads[name][0]

    def dtype(self, name: str) -> torch.dtype:  # noqa: D102
        return self._heads[name][1]


class SafetensorsShards(Shards):
    """Files of safetensors, of which single tensors can be read."""

    def _read_heads(self, file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        with _open_safetensors(file) as opened:
            heads = {}
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8)
                heads[name] = tuple(part.get_shape()), dtype
        return heads

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        with _open_safetensors(self._files[name]) as opened:
            tensor: Tensor = opened.get_tensor(name) if place is None else opened.get_slice(name)[place]
            # The file is mapped into memory, and may change or go.
            return tensor.clone()


class PickledShards(Shards):
    """Files of ``torch.save``, read whole; the last one is kept."""

    _last: tuple[Path, Mapping[str, Tensor]] | None = None

    def _read_heads(self, file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        state = load_pickled(file, "meta")
        return {
            name: (tuple(value.shape), value.dtype)
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def read(self, name: str, place: int | None = None) -> Tensor:  # noqa: D102
        file = self._files[name]
        if self._last is None or self._last[0] != file:
            self._last = None  # so that there are never two in memory
            self._last = file, load_pickled(file)
        tensor = self._last[1][name].detach()
        return (tensor if place is None else tensor[place]).clone()


def memory_of(tensor: Tensor) -> object:
    """The same for two tensors that are the same numbers in the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder holds weights as transformers saves them."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def open_tensors(path: Path, contents: Any = None) -> TensorFile:
    """The tensors of a file, of the index of several, or of a folder of transformers. Runs no code from it.

    Args:
        path: where they are.
        contents: what :func:`load_pickled` gave of the file, if it has been read already.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: it is damaged, or holds something else.
        ImportError: a ``.safetensors`` file without that package.
    """
    if path.is_dir():
        path = next(path / name for name in _WEIGHTS if (path / name).is_file())
    if path.name.endswith(".index.json"):
        files = _shards(path)
        if all(file.suffix == ".safetensors" for file in files.values()):
            return SafetensorsShards(path, files)
        return PickledShards(path, files)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as opened:
            return SafetensorsShards(path, dict.fromkeys(opened.keys(), path))
    return StateDict(path, _state_dict(load_pickled(path) if contents is None else contents, path))


def beside(path: Path, name: str) -> dict[str, Any]:
    """The JSON file of that name in a folder, or in that of a file; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    found = (path if path.is_dir() else path.parent) / name
    contents = read_json(found) if found.is_file() else {}
    if not isinstance(contents, dict):
        raise ValueError(f"{found} is damaged: it must hold a JSON object")
    return contents


def load_pickled(path: Path, device: str = "cpu") -> Any:
    """What ``torch.save`` wrote, without running code from it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or holds objects that only code could make.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds, with a page of advice
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "Unsupported" in line), lines[0])
        raise ValueError(
            f"{path} is damaged, or holds more than a state_dict ({reason}). If you trust it, take that out: "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
        ) from error


def _state_dict(contents: Any, path: Path) -> dict[str, Tensor]:
    """The one state_dict that a file holds: the whole of it, or one of its entries."""
    if _is_state_dict(contents):
        return {name: value for name, value in contents.items() if isinstance(value, Tensor)}
    if not isinstance(contents, Mapping):
        raise ValueError(
            f"{path} holds no state_dict, a mapping of names to tensors, but {type(contents).__name__}"
        )
    found = [name for name, value in contents.items() if _is_state_dict(value)]
    if len(found) != 1:
        which = f"several: {', '.join(map(repr, found))}" if found else f"none, but keys {list(contents)[:5]}"
        raise ValueError(
            f"{path} must hold one state_dict, a mapping of names to tensors, it holds {which}"
            + ('. Take one out: torch.save(torch.load(path)["..."], new_path)' if found else "")
        )
    return _state_dict(contents[found[0]], path)


def _is_state_dict(value: object) -> bool:
    """Whether it maps names to tensors; other entries are counters and the like."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    held = list(value.values())
    return any(isinstance(each, Tensor) for each in held) and not any(map(_is_state_dict, held))


def _shards(index: Path) -> dict[str, Path]:
    """Of each tensor the file that holds it, as an index says."""
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
        if not file.is_file():
            raise FileNotFoundError(f"{index} names {file.name}, which is not there")
    return files


def _open_safetensors(path: Path) -> Any:
    try:
        library = importlib.import_module("safetensors")
    except ImportError as error:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return library.safe_open(path, framework="pt")
    except OSError:
        raise
    except Exception as error:  # the package's own kind
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# Dtypes that are missing here are those of packed or quantised numbers.
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}

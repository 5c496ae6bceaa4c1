"""Loads files of ``torch.save`` without running their code, and finds the state_dict in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.files import open_to_read

# Under this name modules save objects of any form; see ``nn.Module.get_extra_state``.
_EXTRA_STATE = "_extra_state"


def load_pickled(path: Path, *, mapped: bool = False) -> Any:
    """Load what ``torch.save`` wrote, without running code from it.

    Args:
        path: the file.
        mapped: whether its tensors may stay in the file until they are used. Files from before PyTorch 1.6
            are read whole in any case.

    Raises:
        OSError: the file cannot be read, or is a folder.
        ValueError: the file is damaged, is a pipe or a device, or holds objects that only code could make.
    """
    open_to_read(path).close()  # torch.load would wait for what is written to a pipe
    try:
        mapped = mapped and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types, with a page of advice
        raise ValueError(f"{path} {_why(error)}") from error


def _why(error: Exception) -> str:
    """Return why a file cannot be loaded, and what helps."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if any("TorchScript" in line for line in lines):
        return (
            "is a TorchScript archive: save its weights alone, "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    unsupported = next((line for line in lines if re.search("Unsupported (global|class)", line)), None)
    if unsupported is not None and isinstance(error, pickle.UnpicklingError):
        what = unsupported.partition(" was not an allowed")[0]
        return (
            f"holds more than a state_dict ({what}). If you trust it, "
            "take that out: torch.load(path, weights_only=False) gives what was saved, a model with "
            ".state_dict() or a mapping with the state_dict under one of its keys; then "
            "torch.save(state_dict, new_path)"
        )
    # Without what PyTorch advises next: to load the file in a way that may run code from it.
    return f"is damaged, or nothing that torch.save wrote ({lines[0].split('. ')[0]})"


def state_dict_in(contents: Any, path: Path) -> dict[str, Any]:
    """Return the one state_dict that a file holds: the whole of it, or one of its entries.

    Returns:
        The tensors by name, and entries that hold tensors in another form, such as tuples.

    Raises:
        ValueError: there is none, or there are several.
    """
    if not isinstance(contents, Mapping):
        raise ValueError(
            f"{path} holds no state_dict, a mapping of names to tensors, but {type(contents).__name__}"
        )
    entries = {name: value for name, value in contents.items() if not _is_extra(name)}
    # A mapping with matrices takes precedence over one with scalars only, such as a gradient scaler's.
    inside = [name for name, value in entries.items() if _matrices(value)]
    own = [name for name in _matrices(entries) if "." in name or name == "weight"]
    if own and inside:
        raise ValueError(
            f"{path} must hold one state_dict, a mapping of names to tensors, it holds tensors of its own "
            f"({own[0]!r}) and mappings of tensors ({', '.join(map(repr, inside))}). {_TAKE_ONE_OUT}"
        )
    if own or not inside:
        if any(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries.items()):
            return tensor_entries(entries)
        inside = [name for name, value in entries.items() if _holds_tensors(value)]
    if len(inside) != 1:
        which = (
            f"several: {', '.join(map(repr, inside))}. {_TAKE_ONE_OUT}"
            if inside
            else f"none, but keys {list(contents)[:5]}"
        )
        raise ValueError(f"{path} must hold one state_dict, a mapping of names to tensors, it holds {which}")
    return state_dict_in(entries[inside[0]], path)


def tensor_entries(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tensors of a state_dict, and the tuples and lists that hold packed tensors."""
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str)
        and not _is_extra(name)
        and (isinstance(value, Tensor) or _holds_matrix(value))
    }


def _is_extra(name: object) -> bool:
    return isinstance(name, str) and name.endswith(_EXTRA_STATE)


_TAKE_ONE_OUT = 'Take one out: torch.save(torch.load(path)["..."], new_path)'


def _matrices(value: object) -> list[str]:
    """Return the names of the tensors of at least two dimensions in a mapping; empty for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return []
    return [name for name, entry in value.items() if isinstance(entry, Tensor) and entry.dim() >= 2]


def _holds_tensors(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(entry, Tensor) for entry in value.values())
    )


def _holds_matrix(value: object) -> bool:
    """Whether this is a tuple or list with a tensor of at least two dimensions, such as a packed weight."""
    return isinstance(value, (tuple, list)) and any(
        isinstance(entry, Tensor) and entry.dim() >= 2 for entry in value
    )


def memory_of(tensor: Tensor) -> object:
    """Return a key that is equal for dense tensors with the same entries in the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def why_unreadable(value: object) -> str | None:
    """Return why an entry of a state_dict is no dense tensor with values; None for one that is."""
    if not isinstance(value, Tensor):
        return f"is packed: a {type(value).__name__} of tensors in the place of one"
    if value.is_nested:
        return "is a nested tensor"
    if value.layout != torch.strided:
        return f"is not dense ({value.layout})"
    # A subclass may hold anything behind the shape and dtype that it shows.
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"is a {type(value).__name__}, which may keep its numbers in any form"
    return "has no numbers: it was saved from the meta device" if value.is_meta else None

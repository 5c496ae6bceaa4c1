"""The file of an unfinished walk, from which a walk that was killed goes on."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from modfast.circuit import pack_masks, unpack_masks
from modfast.files import read_arrays, write_arrays

_FORMAT = "modfast walk 1"
_WHAT = "file of an unfinished walk"

# A walk that is killed loses the work of at most this many seconds.
_SECONDS_BETWEEN = 10.0

_SAME_LOSS = 1e-9


def walk_file(label: int) -> str:
    """Return the name of a class's file in a folder of several."""
    return f"label-{label}.npz"


def read_walk(path: str | os.PathLike[str]) -> None:
    """Check that a file is that of an unfinished walk, of any model.

    Raises:
        ValueError: the file is truncated, damaged or not a walk's.
        OSError: the file cannot be read.
    """
    with read_arrays(path, _FORMAT, _WHAT):
        pass


class _Walk(Protocol):
    @property
    def before(self) -> tuple[float, float]: ...

    @property
    def masks(self) -> dict[str, Tensor]: ...

    def restore(self, masks: Mapping[str, Tensor]) -> None: ...


class Checkpoint:
    """The file of one walk.

    Args:
        path: the file; None writes nothing.
        fingerprint: a digest of everything that the walk depends on, from :func:`fingerprint`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._saved = time.monotonic()

    def restore(self, walk: _Walk) -> int:
        """Bring the walk to the state in the file; return how many weights are decided.

        Raises:
            ValueError: the file is truncated, damaged, or not of this walk.
            OSError: the file cannot be read.
        """
        if self._path is None or not os.path.exists(self._path):
            return 0
        with read_arrays(self._path, _FORMAT, _WHAT) as (entries, arrays):
            stored, done = entries["fingerprint"], int(entries["done"])
            masks = unpack_masks(entries["layers"], arrays, "mask")
            shapes = {name: mask.shape for name, mask in walk.masks.items()}
            same = (
                stored == self._fingerprint and {name: mask.shape for name, mask in masks.items()} == shapes
            )
            # The fingerprint covers the model's tensors, not its code, so the loss is compared too. The file
            # may come from another processor, which rounds differently.
            if not same or not math.isclose(entries["loss_before"], walk.before[0], rel_tol=_SAME_LOSS):
                raise ValueError("it is of a walk over another model, other inputs or with other options")
        walk.restore(masks)
        return done

    def save(self, walk: _Walk, done: int, *, now: bool) -> None:
        """Write the file if ``now`` is set or the last write was long enough ago."""
        if self._path is None or not (now or time.monotonic() - self._saved > _SECONDS_BETWEEN):
            return
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        layers = pack_masks(walk.masks, arrays, "mask")
        entries = {"fingerprint": self._fingerprint, "done": done, "layers": layers}
        entries["loss_before"] = walk.before[0]
        write_arrays(self._path, _FORMAT, entries, arrays)
        self._saved = time.monotonic()


def fingerprint(model: nn.Module, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any]) -> str:
    """Return a digest of everything that a walk depends on."""
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    # Not of the state_dict, which may hold other objects than tensors, and lacks some buffers.
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), *tensors.items()]:
        if tensor is None:
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Several processes that train one model: what each of them does, and how they fail together.

Training is data parallel. Every process (a *rank*) holds the whole model and computes the gradient of its
share of each batch; the gradients are summed, so that all ranks make the same step. The first rank does what
only one process may do, such as writing files.

A rank that fails alone would leave the others waiting for it. So whatever may fail for a reason that a user
can mend (files, options, data) goes through :meth:`Ranks.every` or :meth:`Ranks.first`, which raise
:class:`RankError` on all ranks if one fails. A defect anywhere else ends its process, and torchrun then ends
the others.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# How long a process waits for another one to print its error.
_LONGEST_WAIT = timedelta(seconds=60)


class RankError(RuntimeError):
    """Raised on every rank when something failed on at least one of them.

    On the rank that failed (the first one, if several did) ``__cause__`` is the exception raised there.

    Attributes:
        rank: the rank that failed.

    Example:
        >>> print(RankError(1, "no such file: data"))
        rank 1: no such file: data
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


class Ranks:
    """The processes that work on one model together, as seen from one of them.

    Every method but :meth:`share` is collective: all ranks call it, in the same order. With one process
    no method communicates or changes anything.

    Args:
        group: the process group; None for this process alone.

    Attributes:
        group: as given.
        rank: the number of this process within the group, from 0.
        size: how many processes there are.

    Raises:
        ValueError: this process is not in the group.

    Example:
        >>> alone = Ranks()
        >>> alone.size, alone.is_first, alone.share(torch.arange(3)).tolist()
        (1, True, [0, 1, 2])
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: this process is not one of its members")

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, which writes files and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's rows of ``batch``: at most one fewer than others have, perhaps none."""
        return batch.tensor_split(self.size)[self.rank]

    # --- Tensors.

    def copy_first_(self, model: nn.Module) -> None:
        """Copy the first rank's parameters and buffers to all ranks."""
        if self.size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            first = tensor.detach().contiguous()
            dist.broadcast(first, group=self.group, group_src=0)
            tensor.detach().copy_(first)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the ranks, the same bits on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.group)
        return values

    def sum_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every ``.grad`` by its sum over the ranks, the same bits on each.

        All parameters of a dtype travel in one message. An absent gradient counts as zero, since a rank
        without images has no gradients.
        """
        if self.size == 1:
            return
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_kind.setdefault((parameter.device, parameter.dtype), []).append(parameter.grad)
        for grads in by_kind.values():
            sums = self.sum(torch.cat([grad.reshape(-1) for grad in grads]))
            for grad, part in zip(grads, sums.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view(grad.shape))

    # --- Results and failures.

    def gather(self, value: T) -> list[T]:
        """Return every rank's ``value``, by rank. Values should be small: they are pickled."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def every(self, function: Callable[[], T]) -> T:
        """Call ``function``, which does not communicate, and return its result, if no rank failed.

        Raises:
            RankError: ``function`` raised an exception on some rank. A single process raises that exception
                itself.
        """
        if self.size == 1:
            return function()
        try:
            result = function()
        except Exception as error:
            self._fail_together(error)
        else:
            self._fail_together(None)
        return result

    def _fail_together(self, error: Exception | None) -> None:
        """Raise on every rank if any rank has an error."""
        message = None if error is None else str(error) or type(error).__name__
        for rank, failure in enumerate(self.gather(message)):
            if failure is not None:
                raise RankError(rank, failure) from (error if rank == self.rank else None)

    def first(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the first rank and return its result, which should be small, on every rank.

        Raises:
            RankError: ``function`` raised an exception. A single process raises that exception itself.
        """
        result: Any = self.every(lambda: function() if self.is_first else None)
        first_result: T = self.gather(result)[0]
        return first_result

    def first_of_each_machine(self, function: Callable[[], T]) -> T:
        """Call ``function`` on one rank of each machine, then on the others, which find the files it made.

        Raises:
            RankError: ``function`` raised an exception on some rank. A single process raises that exception
                itself.
        """
        if self.size == 1:
            return function()
        leads = int(os.environ.get("LOCAL_RANK", "0")) == 0
        early = self.every(lambda: function() if leads else None)
        return self.every(lambda: function() if early is None else early)


@contextmanager
def launched() -> Iterator[Ranks]:
    """Yield the processes that torchrun started, connected while the context lasts; else this process alone.

    Tensors on the CPU go through gloo, those on GPUs through NCCL.

    Example:
        >>> with launched() as ranks:
        ...     ranks.size
        1
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Ranks()
        return
    # Before there is a group: this module, which others import later, keeps the one it finds as a default.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    ranks = Ranks(dist.group.WORLD)
    yield ranks
    # Not after an exception: that would wait for ranks which may themselves be waiting for this one. The end
    # of the process closes its connections without waiting.
    dist.destroy_process_group()
    # Drop every reference: the threads of a group that outlives the interpreter now and then abort. Frames of
    # functions that have ended hold some, in cycles with exceptions that were caught in them.
    ranks.group = None
    gc.collect()


def print_once(show: Callable[[], None] | None) -> None:
    """Call ``show`` in the first of torchrun's processes that gets here; the others wait for it to return.

    So an error that occurs in all processes is printed once. No process ends before that, as torchrun would
    then end the others. Processes that do not get here are not waited for.

    Args:
        show: prints the error; None in a process that knows of it from another one.

    Example:
        >>> print_once(lambda: print("no such file"))
        no such file
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        if show is not None:
            show()
        return
    # A restarted run uses the same store, so the key has the number of restarts.
    key = f"modfast {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=_LONGEST_WAIT
        )
        if show is None or store.add(f"{key} prints", 1) > 1:
            store.wait([f"{key} has printed"])
            return
    except RuntimeError:
        # The store is gone, or nobody has printed in time: better twice than never.
        if show is not None:
            show()
        return
    show()
    store.set(f"{key} has printed", "")


def take_gpu(device: str) -> None:
    """Make ``"cuda"`` mean this process's own GPU, that of the ``LOCAL_RANK`` which torchrun has set.

    Raises:
        ValueError: ``device`` is not ``"cuda"``, or there are fewer GPUs than processes.

    Example:
        >>> take_gpu("cuda:1")
        Traceback (most recent call last):
        ValueError: device must be auto, cpu or cuda, each process taking its own, got 'cuda:1'
    """
    if device != "cuda":
        raise ValueError(f"device must be auto, cpu or cuda, each process taking its own, got {device!r}")
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(
            f"device: {os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {count} usable GPUs: "
            "start fewer, or choose the device cpu"
        )
    torch.cuda.set_device(local)

"""Real processes that talk through gloo on this machine, for tests of what several of them do together."""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


class Processes:
    """``size`` processes that run functions given to them, each in a new process group of all.

    Starting processes that import PyTorch takes seconds, so they serve many tests.
    """

    grace = 10.0  # seconds for processes that hang to say so themselves

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        # They meet in a file: there is no port that two pytest workers could both choose.
        store = Path(self._folder.name) / "store"
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, str(store)), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the connection
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """``function(*args)`` in every process, where ``torch.distributed`` is ready; the results by rank.

        ``function`` is a module's own, which the processes import. If it fails or hangs, so does this test,
        with what every process that failed has to say.
        """
        for connection in self._connections:
            connection.send((function, args, timeout))
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout + self.grace
        while len(answers) < self.size:
            waiting = {c: rank for rank, c in enumerate(self._connections) if rank not in answers}
            ready = wait(list(waiting), max(0, deadline - time.monotonic()))
            for connection in ready:
                rank = waiting[connection]
                try:
                    answers[rank] = connection.recv()
                except EOFError:
                    self._processes[rank].join(5)
                    answers[rank] = False, f"died with exit code {self._processes[rank].exitcode}\n"
            if not ready:
                self.close()
                for rank in waiting.values():
                    answers[rank] = False, f"no answer in {timeout} s; its stack is in the captured stderr\n"
        failures = [f"rank {rank} of {self.size}: {a[1]}" for rank, a in sorted(answers.items()) if not a[0]]
        if failures:
            pytest.fail("\n".join(failures), pytrace=False)
        return [answers[rank][1] for rank in range(self.size)]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(connection: Connection, rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = dist.FileStore(store, size)
    for job in itertools.count():
        try:
            function, args, timeout = connection.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(timeout)
        try:
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(str(job), meeting),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
            torch.manual_seed(0)
            answer = True, function(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        finally:
            # Those who wait for a rank that failed find their connection closed, and fail too.
            if dist.is_initialized():
                dist.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()
        connection.send(answer)

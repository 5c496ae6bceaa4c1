"""Other processes for tests: fresh interpreters, and several that talk through gloo on this machine.

All but torchrun's are forked from a server that has imported PyTorch already: importing it takes seconds,
forking takes none. None has a short time limit, since a busy machine may be slow; only processes that never
answer are ended.
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist

# How many seconds a test waits for anything before it fails: a hundred times what any test takes, so that no
# machine is too slow.
PATIENCE = 600.0

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail if it does not within ``PATIENCE``."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE:.0f} s in vain")
        time.sleep(0.01)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that has imported PyTorch and nothing of modfast.

    It has this process's environment without the variables of modfast, and those given.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODFAST_")}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = FORKED.Process(target=_execute, args=(code, {**inherited, **environment}, outputs))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(code, process.exitcode, *(path.read_text() for path in outputs))


def _execute(code: str, environment: dict[str, str], outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def torchrun(size: int, *arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``modfast`` with arguments in ``size`` processes, in a folder that holds the model they name."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*launcher, "-m", "modfast", *arguments],
        # Without a number of threads torchrun chooses one, and prints that.
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def signal_at_call(number: int, sent: signal.Signals = signal.SIGKILL) -> None:
    """Send this process a signal at its ``number``-th call of a function from now on.

    This is in the middle of its work, and at the same place on every machine.
    """
    calls = itertools.count(1)

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and next(calls) == number:
            os.kill(os.getpid(), sent)

    sys.setprofile(count)


class Processes:
    """``size`` processes that all run the same function, each time in a new process group."""

    patience = PATIENCE

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        # They meet in a file: there is no port that two pytest workers could both choose.
        store = Path(self._folder.name) / "store"
        self._stacks = [Path(self._folder.name) / f"stack-{rank}" for rank in range(size)]
        self._connections: list[Connection] = []
        self._processes = []
        for rank, stack in enumerate(self._stacks):
            ours, theirs = FORKED.Pipe()
            arguments = (theirs, rank, size, store, stack)
            process = FORKED.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the connection
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` in every process, where ``torch.distributed`` is ready; the results by rank.

        ``function`` is defined at the top of a module, which the processes import. If it fails or hangs, the
        test fails, with the error of every process that failed.
        """
        self._send((function, args))
        # Wait until all have joined the group before one begins: it may finish and leave the group at once.
        self._receive()
        self._send(None)
        return self._receive()

    def _send(self, message: object) -> None:
        for connection in self._connections:
            connection.send(message)

    def _receive(self) -> list[Any]:
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < self.size:
            waiting = {c: rank for rank, c in enumerate(self._connections) if rank not in answers}
            ready = wait(list(waiting), self.patience)
            for connection in ready:
                rank = waiting[connection]
                try:
                    answers[rank] = connection.recv()
                except EOFError:
                    self._processes[rank].join()
                    answers[rank] = False, f"died with exit code {self._processes[rank].exitcode}\n"
            if not ready:
                for rank in waiting.values():
                    self._processes[rank].terminate()
                    self._processes[rank].join()
                    answers[rank] = False, f"no answer; it was at\n{self._stacks[rank].read_text()}"
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


def _serve(connection: Connection, rank: int, size: int, store: Path, stack: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = dist.FileStore(str(store), size)
    with stack.open("w") as file:
        # A process that is ended from outside writes where it was.
        faulthandler.register(signal.SIGTERM, file, chain=True)
        for job in itertools.count():
            try:
                function, args = connection.recv()
            except EOFError:
                return
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(str(job), meeting),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=2 * PATIENCE),
            )
            connection.send((True, None))
            connection.recv()
            torch.manual_seed(0)
            try:
                answer = True, function(*args)
            except BaseException:
                answer = False, traceback.format_exc()
            finally:
                # Ranks that wait for one that failed find their connection closed, and fail too.
                dist.destroy_process_group()
            connection.send(answer)

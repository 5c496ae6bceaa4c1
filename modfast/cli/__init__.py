"""The command line: a module for each command, with its options and its function."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from modfast.train.distributed import print_once


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for an error, 130 when interrupted.

    Under torchrun all processes work together; the first one prints and writes.
    """
    try:
        # Tables and pictures need packages that the library alone does not.
        from .commands import run
    except ImportError as error:
        needs = 'the command line needs: pip install "modfast[experiments]"'
        print_once(functools.partial(print, f"modfast: error: {error}; {needs}", file=sys.stderr))
        return 1
    return run(arguments)

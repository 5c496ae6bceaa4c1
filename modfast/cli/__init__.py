"""The command line: a module for each command, and its options in ``parsers``.

A command line is parsed before anything heavy is imported, so that help and mistakes are told at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence

from .parsers import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for an error, 130 when interrupted.

    Under torchrun all processes work together; the first one prints and writes.
    """
    # Of several processes one parses for all, once they are connected; torchrun sets the variable.
    is_alone = "TORCHELASTIC_RUN_ID" not in os.environ
    options = parse(arguments) if is_alone else None
    try:
        # Tables and pictures need packages that the library alone does not.
        from .commands import run
    except ImportError as error:
        _refuse(error)
        return 1
    return run(arguments, options)


def _refuse(error: ImportError) -> None:
    """Say which packages the command line needs, once for all processes."""
    from modfast.train.distributed import print_once

    needs = 'the command line needs: pip install "modfast[experiments]"'
    print_once(functools.partial(print, f"modfast: error: {error}; {needs}", file=sys.stderr))

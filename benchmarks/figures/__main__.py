"""Check every figure of the pages against the committed results; with ``--write``, renew it first.

    python -m benchmarks.figures [--write]

Tables stand between markers and are generated (``blocks.py``); sentences are listed in ``figures.toml``. A
figure is a number with a unit, or with a decimal point, outside code. Ends with 1 if one is wrong or unknown.
"""

from __future__ import annotations

import argparse
import sys

from . import check
from .pages import write_blocks


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write tables and figures from the results")
    if parser.parse_args().write:
        for page in dict.fromkeys([*write_blocks(), *check.write()]):
            print(f"wrote {page}")
    found = check.problems()
    print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m modfast`` is the command ``modfast``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

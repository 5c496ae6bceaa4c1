"""Pictures leave a notebook as it was: later figures are shown, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# As that of notebooks does, it switches the interactive mode on when the first figure loads it.
BACKEND = """
import matplotlib
from matplotlib.backends.backend_agg import *

matplotlib.interactive(True)
"""

SCRIPT = """
import matplotlib
from modfast import plot

plot.curves({"one": [1.0, 2.0]})
assert matplotlib.is_interactive(), "figures that come later are not shown"
"""


def test_the_first_picture_leaves_the_interactive_mode_on(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "like_a_notebook.py").write_text(BACKEND)
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "module://like_a_notebook",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

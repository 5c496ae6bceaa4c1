"""Without the library that a callback is for, its module says what to install; the rest needs neither."""

import pytest

WITHOUT = """
import sys
sys.modules[{library!r}] = None
import modfast.integrations, modfast.integrations.schedules, modfast.integrations.steps
assert not {{"transformers", "lightning", "peft"}} & {{name for name, found in sys.modules.items() if found}}
import modfast.integrations.{library}
"""


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_a_library_that_is_not_there(run_python, library):
    done = run_python(WITHOUT.format(library=library))
    assert done.returncode == 1
    assert f"ImportError: modfast.integrations.{library} needs {library} (" in done.stderr
    assert f'run: pip install "modfast[{library}]"' in done.stderr

"""What each operator does with marks; see :mod:`modfast.network.following`.

To add a rule:

1. Find the operator's name: the error says it, ``aten.roll.default`` is ``roll``.
2. If an operator of the table does the same with units, add the name to its list: what passes numbers
   through, meets, moves, reduces, pools. That is all, but for the test.
3. Else write a function in the file of its kind, with ``@rule("name")``. It gets the follower and the call:
   ``follower.marks(call.given[0], call.arguments[0])`` are the marks of the first argument, and it returns
   those of the result, of the result's shape (a list for several results, None for what has no units).
   ``follower.units.join(one, other)`` notes that units are the same. What it cannot tell it raises, with
   ``call.fail("what the operator does here")``; it never guesses.
4. Add a tiny model that reaches the operator, and what is expected of it, to
   ``tests/network/number_cases.py`` or ``weight_cases.py``.
"""

from . import attention, elementwise, moving, reducing, weights
from .table import RULES

__all__ = ["RULES", "attention", "elementwise", "moving", "reducing", "weights"]

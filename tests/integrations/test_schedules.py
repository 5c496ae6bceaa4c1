"""Schedules: factors of the weight, as functions that can be pickled and compared."""

import math
import pickle

import pytest

from modfast.integrations.schedules import CosineSchedule, LinearSchedule


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_from_the_first_factor_to_the_last(kind):
    schedule = kind(10, start=5, first=2.0, last=0.5)
    factors = [schedule(step) for step in range(30)]
    assert factors[:6] == [2.0] * 6
    assert factors[15:] == [0.5] * 15
    assert schedule(10) == pytest.approx(1.25)
    assert factors == sorted(factors, reverse=True)
    assert len(set(factors)) == 11


def test_the_shapes():
    assert LinearSchedule(8)(2) == 0.25
    assert CosineSchedule(8)(2) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_what_they_are(kind):
    schedule = kind(10, start=5)
    assert pickle.loads(pickle.dumps(schedule)) == schedule == kind(10, 5, 0.0, 1.0) != kind(10)
    assert repr(schedule) == f"{kind.__name__}(steps=10, start=5, first=0.0, last=1.0)"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"steps": 2.5}, "steps must be a positive integer, got 2.5"),
        ({"steps": 1, "start": -1}, "start must be an integer of at least 0, got -1"),
        ({"steps": 1, "first": math.nan}, "first must be a finite number, got nan"),
        ({"steps": 1, "last": "1"}, "last must be a finite number, got '1'"),
    ],
)
def test_what_is_refused(arguments, told):
    with pytest.raises(ValueError, match="must be") as raised:
        LinearSchedule(**arguments)
    assert str(raised.value) == told

"""Which device computes, with how many threads, and what the machine is made of."""

import json
import sys

import numpy as np
import pytest
import torch

from modfast import machine
from modfast.machine import choose_device, environment


def test_environment() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert found["threads"] == torch.get_num_threads()
    assert len(found["devices"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found


def test_environment_without_processor_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine, "open", refuse, raising=False)
    assert machine._processor()


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("toaster", "cuda:99", "meta"):
        with pytest.raises(ValueError, match="device"):
            choose_device(name)

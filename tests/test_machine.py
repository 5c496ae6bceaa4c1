"""Which device computes, with how many threads, and what the machine is made of."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch

from modfast import machine
from modfast.machine import choose_device, command_line, environment


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


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/modfast", "train", "--out", "a b"])
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert command_line() == "/some/where/modfast train --out 'a b'"
    # python -m modfast, python -m package.module.
    main.__spec__ = ModuleSpec("modfast.__main__", None)
    assert command_line() == "python -m modfast train --out 'a b'"
    main.__spec__ = ModuleSpec("package.module", None)
    assert command_line() == "python -m package.module train --out 'a b'"

"""The processes that other tests run functions in: a failure in one of them is said, and stops nobody."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from processes import Processes


def add(number):
    total = torch.tensor(number)
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def fail_on_one():
    if dist.get_rank() == 1:
        raise ValueError("rank 1 cannot")
    dist.all_reduce(torch.ones(1))


def wait_for_nobody():
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))


def wait_forever():
    signal.pause()


def die():
    os._exit(3)


def test_a_function_runs_in_all_and_its_results_come_in_order(processes):
    assert processes(3).run(add, 2) == [(0, 6), (1, 6), (2, 6)]


def test_what_fails_in_one_process_releases_the_other_and_they_serve_on(processes):
    pair = processes(2)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 0 of 2: .*rank 1 of 2: .*rank 1 cannot"):
        pair.run(fail_on_one)
    with pytest.raises(pytest.fail.Exception, match="rank 0 of 2"):
        pair.run(wait_for_nobody)
    assert pair.run(add, 1) == [(0, 2), (1, 2)]
    assert processes(2) is pair


def test_a_process_that_dies_is_said():
    alone = Processes(1)
    with pytest.raises(pytest.fail.Exception, match="rank 0 of 1: died with exit code 3"):
        alone.run(die)
    assert not alone.alive
    alone.close()


def test_a_process_that_hangs_is_ended():
    alone = Processes(1)
    assert alone.run(add, 1) == [(0, 1)]
    alone.patience = 0.0
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 0 of 1: no answer; it was at.* in _serve"):
        alone.run(wait_forever)
    assert not alone.alive
    alone.close()


def test_an_interpreter_has_only_the_settings_that_are_given(run_python, monkeypatch):
    monkeypatch.setenv("MODFAST_CPU", "none")
    done = run_python(
        "import os, sys\n"
        "print(os.environ.get('MODFAST_CPU'), os.environ['GIVEN'], 'modfast' in sys.modules)\n"
        "sys.exit('ended')\n",
        GIVEN="here",
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "None here False\n", "ended\n")


def test_a_process_is_killed_at_a_call(run_python):
    done = run_python(
        "from processes import signal_at_call\n"
        "def call(number):\n"
        "    print(number, flush=True)\n"
        "signal_at_call(3)\n"
        "for number in range(1, 10):\n"
        "    call(number)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n2\n")

"""What processes that train together do and say, piece by piece."""

import os
import textwrap
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from processes import torchrun
from torch import nn

from modfast.train.distributed import RankError, Ranks, launched, print_once, take_gpu


def world():
    return Ranks(dist.group.WORLD)


def gradients():
    ranks = world()
    single, double = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False, dtype=torch.float64)
    double.weight.grad = torch.full((2, 2), 0.1 * ranks.rank, dtype=torch.float64)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    if ranks.is_first:
        # As some kernels leave it: not contiguous.
        single.weight.grad = torch.arange(6.0).reshape(3, 2).t()
    ranks.sum_gradients_([single.weight, frozen, double.weight])
    assert frozen.grad is None
    return single.weight.grad, double.weight.grad


def test_gradients_of_any_dtype_and_layout_are_summed(processes):
    for single, double in processes(3).run(gradients):
        assert torch.equal(single, torch.arange(6.0).reshape(3, 2).t())
        torch.testing.assert_close(double, torch.full((2, 2), 0.3, dtype=torch.float64))


def copies():
    ranks = world()
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    model.register_buffer("flags", torch.tensor([True, False]) if ranks.is_first else torch.zeros(2).bool())
    for tensor in model.state_dict().values():
        tensor.copy_(tensor + ranks.rank)
    ranks.copy_first_(model)
    return model.state_dict()


def test_the_first_ones_parameters_and_buffers_are_copied(processes):
    first, *others = processes(3).run(copies)
    assert first["flags"].tolist() == [True, False]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def loaded(folder):
    os.environ["LOCAL_RANK"] = str(dist.get_rank())

    def load():
        found = os.listdir(folder)
        (folder / str(dist.get_rank())).touch()
        return found

    return world().first_of_each_machine(load)


def test_one_process_of_a_machine_loads_before_the_others(processes, tmp_path):
    first, *others = processes(3).run(loaded, tmp_path)
    assert first == []
    assert all("0" in found for found in others)


def outcomes():
    ranks = world()

    def fails_in_the_last():
        if ranks.rank == ranks.size - 1:
            raise KeyError  # which says nothing

    with pytest.raises(RankError, match=r"^rank 2: KeyError$") as caught:
        ranks.every(fails_in_the_last)
    assert isinstance(caught.value.__cause__, KeyError if ranks.rank == 2 else type(None))
    # They are still in step.
    return ranks.every(lambda: ranks.rank), ranks.first(lambda: ranks.rank), ranks.gather(ranks.rank)


def test_all_return_or_all_fail(processes):
    assert processes(3).run(outcomes) == [(rank, 0, [0, 1, 2]) for rank in range(3)]


def test_one_process_fails_as_ever():
    with pytest.raises(KeyError), launched() as ranks:
        ranks.every(lambda: {}["absent"])


def test_each_process_takes_its_own_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    take_gpu("cuda")
    assert taken == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes on a machine with 2 usable GPUs"):
        take_gpu("cuda")
    with pytest.raises(ValueError, match="cuda:0"):
        take_gpu("cuda:0")


def printing(port, failed):
    """What this process prints, as one of torchrun's."""
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "test")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(port))
        print_once((lambda: printed.append(dist.get_rank())) if dist.get_rank() in failed else None)
    return printed


@pytest.mark.parametrize("failed", [[0], [2], [0, 1, 2], [1, 2]])
def test_an_error_of_several_processes_is_printed_once(processes, failed):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    printed = [rank for each in processes(3).run(printing, store.port, failed) for rank in each]
    assert len(printed) == 1
    assert printed[0] in failed


def test_where_processes_cannot_meet_each_prints():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modfast.train.distributed._LONGEST_WAIT", timedelta(seconds=1))
        patch.setenv("TORCHELASTIC_RUN_ID", "test")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(port))
        printed = []
        print_once(lambda: printed.append("this"))
        print_once(None)
    assert printed == ["this"]


COUNTING = """
    import atexit, sys
    import torch.distributed as dist
    from modfast.models import MLP

    kept, real = [], dist.destroy_process_group

    def destroy():
        kept.append(dist.group.WORLD)
        real()

    dist.destroy_process_group = destroy
    atexit.register(lambda: print("references", sys.getrefcount(kept[0])))
"""


@pytest.mark.slow
def test_nothing_keeps_the_group_of_processes_when_they_end(tmp_path):
    # The threads of a group that outlives the interpreter abort now and then.
    (tmp_path / "counting.py").write_text(textwrap.dedent(COUNTING))
    done = torchrun(
        2,
        "train",
        "--model",
        "counting:MLP",
        "--epochs",
        "1",
        "--layers",
        "fc2",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "out"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # The test's own list, and the call that counts.
    assert done.stdout.count("references 2\n") == 2, done.stdout

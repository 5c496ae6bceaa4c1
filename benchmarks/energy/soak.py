"""Call the loss a million times, by autograd and in place, and watch the memory. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

from modfast import EnmeshmentLoss, enmeshment


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000, metavar="N")
    calls = parser.parse_args().calls
    torch.set_num_threads(1)
    small, large = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 8)), nn.Linear(700, 600)
    losses = [EnmeshmentLoss(small, 4), EnmeshmentLoss(large, 4)]

    def round_of_four(index: int) -> None:
        losses[0].accumulate_grad_(0.1)
        losses[0]().backward()
        enmeshment(small[0].weight, losses[0].partitions["0"])
        # Now and then, use a weight whose gradient's memory is kept for the next step.
        losses[index % 100 == 0]().backward()
        if index % 100 == 0:
            large.zero_grad()

    for index in range(2000):
        round_of_four(index)
    gc.collect()
    before = resident_bytes()
    for index in track(range(calls // 4), description="calls, four at a time"):
        round_of_four(index)
    gc.collect()
    grown = resident_bytes() - before
    print(f"{calls} calls: resident memory grew by {grown / 2**20:.2f} MiB, {grown / calls:.2f} bytes a call")
    sys.exit(grown > 8 * 2**20)


if __name__ == "__main__":
    main()

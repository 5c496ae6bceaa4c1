"""What every process of a command does before the work: read the data, take its device."""

from __future__ import annotations

from modfast.data.dataset import Dataset
from modfast.data.load import load_dataset
from modfast.machine import choose_device
from modfast.progress import progress_bar
from modfast.train.distributed import Ranks, take_gpu


def load_data(data: str, ranks: Ranks) -> Dataset:
    """Load the data set of that name, with a bar while it is decoded."""
    with progress_bar("decoding", "images", shown=ranks.is_first) as show:
        # One process downloads or decodes; the others on its machine read the files that it kept.
        return ranks.first_of_each_machine(lambda: load_dataset(data, progress=show))


def take_device(name: str, ranks: Ranks) -> None:
    """Raise an error unless the device exists; of several processes each takes its own GPU."""
    kind = choose_device("auto").type if name == "auto" else name
    if ranks.size > 1 and kind.startswith("cuda"):
        take_gpu(kind)  # before anything is allocated on one
    choose_device(name)

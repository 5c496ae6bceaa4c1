"""A test whether a network is more modular than the same weights in random places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import SEED, Integer, check, check_callback, check_count
from modfast.layers.layer import Layer
from modfast.network.graph import find_network
from modfast.network.units import Change

from .clustering import normalized_cut, spectral_cluster


class ShuffleTest(NamedTuple):
    """The result of :func:`shuffle_test`.

    Attributes:
        normalized_cut: the normalised cut of the network's own clusters.
        shuffled: the normalised cuts of the shuffled networks, float64, ``(num_shuffles,)``, in the order of
            the shuffles.
        mean: the mean of ``shuffled``.
        std: the standard deviation of ``shuffled``, divided by ``num_shuffles - 1``.
        z_score: ``(normalized_cut - mean) / std``: far below 0 for a modular network. If all shuffled
            networks have the same cut, it is infinite, or NaN where the network's cut equals the mean.
        p_value: one-sided: ``(1 + n) / (1 + num_shuffles)``, with n the number of shuffled networks whose cut
            is at most ``normalized_cut``.
    """

    normalized_cut: float
    shuffled: Tensor
    mean: float
    std: float
    z_score: float
    p_value: float

    def __repr__(self) -> str:
        return (
            f"ShuffleTest(normalized cut {self.normalized_cut:.4g}; {len(self.shuffled)} shuffles: "
            f"{self.mean:.4g} ± {self.std:.2g}; z = {self.z_score:.2f}, p = {self.p_value:.2g})"
        )


def shuffle_test(
    model: nn.Module,
    num_clusters: int,
    num_shuffles: int,
    *,
    layers: Iterable[str] | str | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    **options: Any,
) -> ShuffleTest:
    """Compare the normalised cut of a network's clusters with that of the same weights in random places.

    The clusters are those of :func:`spectral_cluster` on :func:`network_graph`. In each shuffled network, all
    entries of each layer's weight are permuted at random within the layer, zeros and the entries of
    convolution kernels too; batch norms stay. It is clustered in the same way. The model is not changed.

    Args:
        model: as for :func:`network_graph`.
        num_clusters: from 1 to the number of the graph's nodes.
        num_shuffles: the number of shuffled networks, at least 2. The p-value is at least
            ``1 / (1 + num_shuffles)``: use 19 or more for a p-value of 0.05.
        layers: as for :func:`network_graph`.
        example_inputs: as for :func:`network_graph`.
        seed: seeds the shuffles, each of which has its own random numbers, and each clustering.
        progress: called as ``progress(done, num_shuffles)`` after each shuffled network.
        workers: the number of networks that are clustered at the same time, each by one thread; by default
            PyTorch's number of threads. The result does not depend on it. Each worker holds a graph in
            memory.
        **options: further options of :func:`spectral_cluster`: ``n_init``, ``tol``, ``max_iter``.

    Returns:
        The :class:`ShuffleTest`.

    Raises:
        ValueError: as for :func:`network_graph` and :func:`spectral_cluster`; an argument is out of range.
        TypeError: ``model`` is no ``nn.Module``; an option is unknown.

    After an exception or an interrupt, shuffles that have not begun are dropped, and running ones are waited
    for. During the call, any thread that starts runs PyTorch on one thread; afterwards the number of threads
    is what it was.

    Source: "Clusterability in Neural Networks" (arXiv 2103.03386).

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> for layer in (model[0], model[2]):
        ...     layer.weight.data = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)) + 0.1
        >>> result = shuffle_test(model, 2, 9, n_init=2)
        >>> result.z_score < -2, result.p_value
        (True, 0.1)
    """
    check_callback("progress", progress)
    count = check_count("num_shuffles", num_shuffles)
    check("num_shuffles", count, Integer(2))
    check("seed", seed, SEED)
    unknown = sorted(set(options) - {"n_init", "tol", "max_iter"})
    if unknown:
        raise TypeError(
            f"shuffle_test takes of spectral_cluster's options n_init, tol, max_iter, got {unknown}"
        )
    threads = torch.get_num_threads() if workers is None else check_count("workers", workers)
    network = find_network(model, layers, example_inputs)
    graph = network.graph()

    def cut(graph: Tensor) -> float:
        return normalized_cut(graph, spectral_cluster(graph, num_clusters, seed=seed, **options))

    def shuffled_cut(number: int) -> float:
        return cut(network.changed_graph(shuffle(int(seed), number)))

    if graph.is_cuda:
        # The workers have streams of their own, on which the caller's work on the weights may not be done.
        torch.cuda.current_stream(graph.device).synchronize()
    shuffled = torch.empty(count, dtype=torch.float64, device="cpu")
    with single_threads(min(threads, count)) as pool:
        # First and alone, so that bad options raise early; in a worker, so that it runs like the others.
        own = pool.submit(cut, graph).result()
        places = {pool.submit(shuffled_cut, number): number for number in range(count)}
        for done, future in enumerate(as_completed(places), 1):
            shuffled[places[future]] = future.result()
            if progress is not None:
                progress(done, count)
    mean, std = shuffled.mean(), shuffled.std()
    return ShuffleTest(
        normalized_cut=own,
        shuffled=shuffled,
        mean=float(mean),
        std=float(std),
        z_score=float((own - mean) / std),
        p_value=(1 + int((shuffled <= own).sum())) / (1 + count),
    )


def shuffle(seed: int, number: int) -> Change:
    """Return a function that permutes the entries of each weight that it is called with."""
    # Not seed + number: then neighbouring seeds would share nearly all of their shuffled networks.
    words = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    # Drawn on the CPU, so that the order does not depend on the device.
    generator = torch.Generator("cpu").manual_seed(int(words[0]))

    def shuffled(layer: Layer, weight: Tensor) -> Tensor:
        flat = weight.reshape(-1)
        order = torch.randperm(len(flat), generator=generator, device="cpu")
        return flat[order.to(flat.device)].view(weight.shape)

    return shuffled


@contextmanager
def single_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Start workers that run PyTorch on one thread each."""
    # Each thread has its own number of PyTorch threads, but a new thread takes over the number that was set
    # last, and so does one that has not read its own yet. Reading it here fixes the caller's number; setting
    # it again afterwards restores it for new threads.
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "modfast-shuffle", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(before)

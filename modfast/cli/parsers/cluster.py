"""The options of ``modfast cluster``."""

from __future__ import annotations

import argparse

from modfast.experiment.settings import AFFINITIES, ClusterConfig

from .options import Parsers, given_path, out_options


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "cluster",
        parents=[out_options()],
        help="find the clusters of a network's layers",
        description="Cluster each layer's weights spectrally, for many numbers of clusters k. The k with the "
        "largest gap between singular values is chosen; its clusters are saved for train --partitions.",
    )
    parser.add_argument(
        "model",
        type=given_path,
        metavar="MODEL",
        help="what train wrote (folder or checkpoint), a file with a state_dict (.pt, .pth, .safetensors), "
        "a folder of transformers, or package.module:callable",
    )
    parser.add_argument(
        "-k",
        "--clusters",
        default="2..20",
        metavar="K",
        help="numbers of clusters to try: 4, %(default)s (default) or 2,4,8",
    )
    parser.add_argument(
        "--layers", nargs="+", metavar="NAME", help="names or globs (default: every weight matrix)"
    )
    parser.add_argument(
        "--affinity",
        default=ClusterConfig.affinity,
        choices=AFFINITIES,
        help="similarity: abs, |weight|, or square, weight^2, where large weights count more "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=ClusterConfig.seed,
        help="seed of random choices (default: %(default)s)",
    )
    parser.add_argument(
        "--n-init",
        type=int,
        default=ClusterConfig.n_init,
        metavar="N",
        help="how often k-means starts; the best result is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--shuffles",
        type=int,
        default=ClusterConfig.shuffles,
        metavar="N",
        help="random orders of the weights to compare with: the chosen gap should exceed theirs "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--tol",
        type=float,
        default=ClusterConfig.tol,
        metavar="T",
        help="largest residual of a singular vector, relative to its singular value (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        help="if MODEL is a callable: call it with this data set's image shape and number of classes; with "
        "--network also the shape of the image on which the model is followed",
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="cluster the whole network: its layers share the clusters of what they write and read. MODEL is "
        "then a folder of transformers, package.module:callable, or what train wrote",
    )
    parser.add_argument(
        "--example",
        metavar="package.module:callable",
        help="with --network: a function that returns the inputs (a tensor, a tuple, or a mapping of keyword "
        "arguments) on which the model is followed (default: --data's, or what the config of a model of "
        "transformers shows)",
    )
    return parser

"""Whole models with their weights, and inputs on which their computation can be followed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modfast.layers.names import is_of
from modfast.models import build_model, import_example, import_model
from modfast.results import read_results
from modfast.train.checkpoint import CHECKPOINT, read_checkpoint, seed_generators

from .read import find_checkpoint
from .tensor_files import beside
from .transformers_model import UnknownModelError, model_class

# Units do not depend on the numbers of an example or on how many there are; few make it fast.
_TOKENS = 8

_ASK = "--example package.module:callable names a function that returns them"
_MUST = f"its example inputs must be given: {_ASK}"

Sizes = tuple[Sequence[int], int]
"""Image shape and number of classes of a data set."""


def whole_model(model: str, *, sizes: Sizes | None = None, seed: int = 0) -> nn.Module:
    """Return a model with its weights, so that its computation can be followed.

    Args:
        model: a folder of transformers with ``config.json`` and weights; ``"package.module:callable"``; or a
            folder that ``modfast train`` wrote.
        sizes: image shape and number of classes, with which a callable is called as by
            ``modfast train --model``, without them without arguments; a run's folder needs them.
        seed: the seed of PyTorch's global generator, set before a callable is called.

    Raises:
        FileNotFoundError: ``model`` does not exist.
        ValueError: it is a file of weights alone, which does not hold how they are used; or a folder whose
            model cannot be built, or whose weights do not fit it.
        ImportError: a folder of transformers needs that package, which is not installed.

    Example:
        >>> type(whole_model("modfast.models:MLP")).__name__
        'MLP'
    """
    path = find_checkpoint(model)
    if path is None:
        torch.manual_seed(seed)
        try:
            return import_model(model) if sizes is None else build_model(model, *sizes)
        except TypeError as error:
            raise ValueError(
                f"{error}; --data gives it the image_shape and num_classes of a data set"
            ) from error
    if path.name == CHECKPOINT:
        return _of_run(path, sizes)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name.endswith(".index.json"):
        return _pretrained(folder)
    raise ValueError(
        f"{model} holds weights, but not how they are computed with: give a folder of transformers with "
        "config.json, a folder of modfast train, or package.module:callable, which returns the model"
    )


def _of_run(checkpoint: Path, sizes: Sizes | None) -> nn.Module:
    if sizes is None:
        raise ValueError(
            f"{checkpoint} needs --data, what it was trained on, whose image shape makes the model"
        )
    config = read_results(checkpoint.parent)["config"]
    seed_generators(config["seed"])  # as for training: what is drawn need not be in the state_dict
    model = build_model(config["model"], *sizes)
    try:
        model.load_state_dict(read_checkpoint(checkpoint)["model"])
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit the model {config['model']!r} ({error})") from error
    return model


def _pretrained(folder: Path) -> nn.Module:
    config = beside(folder, "config.json")
    if not config:
        raise ValueError(f"{folder} needs a config.json, which names the model")
    try:
        kind = model_class(config)
    except UnknownModelError as error:
        raise ValueError(f"{folder}: {error}") from error
    try:
        with torch.random.fork_rng(devices=[]):
            model, found = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype="auto"
            )
    except OSError:
        raise
    except Exception as error:  # another version's settings or a damaged file may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{folder}: transformers cannot load {kind.__name__} ({reason})") from error
    missing = sorted(name for name in found["missing_keys"] if _is_in_graph(model, name))
    if missing:
        raise ValueError(
            f"{folder} lacks weights of {kind.__name__}, which would be made up: {', '.join(missing[:5])}"
        )
    return model  # type: ignore[no-any-return]


def _is_in_graph(model: nn.Module, name: str) -> bool:
    """Whether a parameter or buffer decides a network's graph: a weight, or the scale of a batch norm."""
    prefix, _, attribute = name.rpartition(".")
    module = model.get_submodule(prefix)
    if getattr(module, "running_var", None) is not None:
        return attribute in ("weight", "running_var")
    tensor = getattr(module, attribute)
    return isinstance(tensor, nn.Parameter) and tensor.dim() > 1


def example_for(model: nn.Module, example: str | None = None, sizes: Sizes | None = None) -> Any:
    """Return inputs for a model: those that are named, those of a data set, or those that its config shows.

    Args:
        model: the model.
        example: ``"package.module:callable"``, a function without arguments that returns the inputs.
        sizes: image shape and number of classes of a data set: one random image of this shape.

    Returns:
        A tensor or a tuple as the callable returns it, or a mapping of keyword arguments.

    Raises:
        ValueError: neither is given, and the model is none of transformers whose config shows them without
            doubt: a text model's tokens, or the pixels of an image; or the callable returns something else.

    Example:
        >>> example_for(build_model("mlp", (1, 8, 8), 10), sizes=((1, 8, 8), 10)).shape
        torch.Size([1, 1, 8, 8])
    """
    if example is not None:
        try:
            return import_example(example)
        except TypeError as error:  # the callable that the user named is at fault, not this program
            raise ValueError(str(error)) from error
    is_pretrained = is_of(model, "transformers", "PreTrainedModel")
    if sizes is not None:
        images = _images(model, sizes[0])
        return {str(model.main_input_name): images} if is_pretrained else images
    if not is_pretrained:
        raise ValueError(
            f"example inputs are needed to follow the computation of a {type(model).__name__}: {_ASK}, "
            "or --data takes an image's shape from a data set"
        )
    return _of_config(model)


def _of_config(model: Any) -> Mapping[str, Any]:
    """Inputs of a model of transformers, if its config shows them without doubt."""
    config, kind = model.config, type(model).__name__
    if getattr(config, "sub_configs", None):
        raise ValueError(f"{kind} consists of several models, so {_MUST}")
    arguments = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False):
        inputs = dict(model.dummy_inputs)
        if "decoder_input_ids" not in inputs:
            raise ValueError(f"{kind} has an encoder and a decoder, so {_MUST}")
    elif model.main_input_name == "input_ids":
        inputs = {"input_ids": _tokens(model, config)}
    elif model.main_input_name == "pixel_values":
        inputs = {"pixel_values": _pixels(model, config)}
    else:
        raise ValueError(f"{kind} takes {model.main_input_name!r}, so {_MUST}")
    needed = [
        name
        for name, argument in arguments.items()
        if argument.default is inspect.Parameter.empty
        and argument.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and name not in inputs
    ]
    if needed:
        raise ValueError(f"{kind} also takes {', '.join(needed)}, so {_MUST}")
    # A cache of keys and values is no part of what the weights do.
    return {**inputs, "use_cache": False} if "use_cache" in arguments else inputs


def _tokens(model: nn.Module, config: Any) -> torch.Tensor:
    vocabulary, most = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    if not isinstance(vocabulary, int):
        raise ValueError(f"{type(model).__name__} has no vocab_size in its config, so {_MUST}")
    # Padding may be treated as no token at all.
    tokens = [token for token in range(vocabulary) if token != getattr(config, "pad_token_id", None)]
    length = min(_TOKENS, most) if isinstance(most, int) and most > 0 else _TOKENS
    return torch.tensor([tokens[:length]], device="cpu")


def _pixels(model: nn.Module, config: Any) -> torch.Tensor:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, (list, tuple)) else []
    whole = len(sides) == 2 and all(isinstance(side, int) for side in sides) and isinstance(channels, int)
    if not whole or hasattr(config, "num_frames"):
        raise ValueError(
            f"{type(model).__name__} has no image_size and num_channels of one image in its config, so "
            f"{_MUST}, or --data takes an image's shape from a data set"
        )
    return _images(model, (channels, *sides))  # type: ignore[arg-type]


def _images(model: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    images = torch.rand(1, *shape, generator=generator, device="cpu")
    floats = (each.dtype for each in model.parameters() if each.is_floating_point())
    return images.to(next(floats, torch.float32))

"""The names of a model's modules, the same whatever the model is wrapped in.

``torch.compile``, ``DistributedDataParallel``, FSDP, activation checkpointing, weight averaging and peft put
a module into another one, so that ``fc1`` becomes ``module.fc1`` or ``base_model.model.fc1.base_layer``. A
canonical name leaves all of that out.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.swa_utils import AveragedModel

# Names of children that only these wrappers have, which identify a wrapper without importing its class.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Parts that these wrappers and adapters insert into a name, and prefixes that other wrappers add.
ADAPTED_PART = "base_layer"
WRAPPING_PARTS = (*_WRAPPED, ADAPTED_PART)
WRAPPING_PREFIXES = ("module.", "base_model.model.")


def is_of(module: nn.Module, package: str, *class_names: str) -> bool:
    """Whether a module's class, or one that it is derived from, has one of these names in a package.

    Names are compared, so the package need not be installed. Without names any class of the package counts.
    """
    return any(
        (kind.__module__ == package or kind.__module__.startswith(package + "."))
        and (not class_names or kind.__name__ in class_names)
        for kind in type(module).__mro__
    )


def forward_class(module: nn.Module) -> type | None:
    """The class whose forward pass a module runs; None if the module or a subclass replaces a part of it."""
    kinds = type(module).__mro__
    kind = next(base for base in kinds if "forward" in vars(base))
    replaced = "forward" in vars(module) or any(
        getattr(kinds[0], part, None) is not getattr(kind, part, None)
        for part in ("__call__", "_conv_forward")
    )
    return None if replaced else kind


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside any number of wrappers; a module that is no wrapper itself."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    children = module._modules
    for name in _WRAPPED:
        if name in children:
            return children[name]
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)):
        return children["module"]
    if is_of(module, "peft", "PeftModel"):
        return children["base_model"]
    if is_of(module, "peft.tuners.tuners_utils", "BaseTuner"):
        return children["model"]
    if is_of(module, "peft.utils.other", "ModulesToSaveWrapper"):
        return _trained_copy(module)
    return None


def _trained_copy(module: Any) -> nn.Module | None:
    """The copy of a module that peft trains for the active adapter; the original if there is none."""
    active = [] if module.disable_adapters else module.active_adapters
    trained: nn.Module = module.original_module
    if active and active[0] in module.modules_to_save:
        trained = module.modules_to_save[active[0]]
    return trained


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is one of peft's that wrap a layer and add an adapter to it."""
    return is_of(module, "peft.tuners.tuners_utils", "BaseTunerLayer")


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a model once, by its canonical name, in the model's order.

    A module with an adapter counts as one module. The adapter's own modules are left out, and so are those
    that compute a parametrised weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> [name for name, _ in named_modules(nn.DataParallel(model))]
        ['', '0', '1']
    """
    seen: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(module)
        if module in seen:
            return
        seen.add(module)
        yield name, module
        # The module that an adapter wraps is not listed again, but its children are.
        while is_adapter(module):
            module = unwrapped(module.base_layer)  # type: ignore[arg-type]
            seen.add(module)
        for child_name, child in module.named_children():
            # A parametrised module keeps what computes its weights in a child.
            if not (child_name == "parametrizations" and _holds_parametrizations(child)):
                yield from visit(join(name, child_name), child)

    yield from visit("", model)


def _holds_parametrizations(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleDict) and any(
        isinstance(child, ParametrizationList) for child in module.values()
    )


def join(prefix: str, name: str) -> str:
    """The full name of a module's parameter or child."""
    return f"{prefix}.{name}" if prefix else name


def spellings(name: str) -> list[str]:
    """A name or glob as given, then with more and more of the parts that wrappers add left out.

    Example:
        >>> spellings("module._orig_mod.fc1")
        ['module._orig_mod.fc1', 'module.fc1', 'fc1']
    """
    spelled = [name]
    parts = name.split(".")
    plain = ".".join(part for part in parts if part not in WRAPPING_PARTS)
    spelled.append(plain)
    while (
        prefix := next((prefix for prefix in WRAPPING_PREFIXES if plain.startswith(prefix)), None)
    ) is not None:
        plain = plain.removeprefix(prefix)
        spelled.append(plain)
    return list(dict.fromkeys(spelled))


def bare(name: str) -> str:
    """A name or glob without any part that a wrapper may have added.

    A plain model's own modules may have such names, which are left out too: see :func:`_matching_bare`.

    Example:
        >>> bare("net.module.base_model.model.fc1.base_layer")
        'net.fc1'
    """
    parts: list[str] = []
    for part in name.split("."):
        if part == "model" and parts[-1:] == ["base_model"]:
            parts.pop()
        elif part not in (*WRAPPING_PARTS, "module"):
            parts.append(part)
    return ".".join(parts)


def find_named(names: Sequence[Sequence[str]], name: str) -> list[int]:
    """The indices of the layers that a name stands for: one, or all matrices of a stack; empty if none.

    Args:
        names: for each layer all its names, the canonical one first.
        name: compared as given, then without the parts that wrappers add, and last with those parts left
            out on both sides.
    """
    for spelling in spellings(name):
        matched = [i for i, own in enumerate(names) if spelling in own]
        if matched:
            return matched
    return _matching_bare(names, name, str.__eq__)


def _matching_bare(
    names: Sequence[Sequence[str]], pattern: str, matches: Callable[[str, str], bool]
) -> list[int]:
    """The layers that match without wrappers' parts on both sides; none if two of them become alike.

    A name in a file may have more wrapper parts than the model's (from a ``DataParallel`` somewhere within
    it), or fewer (if the model calls a module of its own ``module``).
    """
    spelling = bare(pattern)
    matched = [i for i, own in enumerate(names) if any(matches(bare(name), spelling) for name in own)]
    alike = len({bare(names[i][0]) for i in matched}) < len(matched)
    return [] if alike or not spelling else matched


def known_name(known: Container[str], name: object) -> str | None:
    """The known name of the layer that a name stands for, its own or its weight's, wrapped or not; or None.

    Example:
        >>> known_name({"fc1", "fc2"}, "module.fc1.weight")
        'fc1'
    """
    for spelling in spellings(name) if isinstance(name, str) else []:
        plain = "" if spelling == "weight" else spelling.removesuffix(".weight")
        for candidate in (plain, spelling):
            if candidate in known:
                return candidate
    return None


def match_names(names: Sequence[Sequence[str]], pattern: str, argument: str) -> list[int]:
    """The indices of the layers with a name that ``pattern``, a name or a glob, matches.

    Args:
        names: for each layer all its names, the canonical one first.
        pattern: compared as given, then without the parts that wrappers add, and last with those parts left
            out on both sides; each time first as a name, then as a glob.
        argument: the argument's name, for the message.

    Raises:
        ValueError: it matches no layer.
    """
    for spelling in spellings(pattern):
        # A name may hold brackets, so it is compared before it is read as a glob.
        for matches in (str.__eq__, fnmatchcase, _matches_place):
            matched = [i for i, own in enumerate(names) if any(matches(name, spelling) for name in own)]
            if matched:
                return matched
    for matches in (str.__eq__, fnmatchcase, _matches_place):
        matched = _matching_bare(names, pattern, matches)
        if matched:
            return matched
    raise ValueError(
        f"{argument}: {pattern!r} matches no layer with a weight matrix; there are: {known_names(names)}"
    )


def _matches_place(name: str, pattern: str) -> bool:
    """Whether a glob that ends in the place within a stack, as in ``"*.up_proj[*]"``, matches a name."""
    stack, bracket, place = pattern.rpartition("[")
    return bool(bracket) and place.endswith("]") and fnmatchcase(name, f"{stack}[[]{place}")


def known_names(names: Sequence[Sequence[str]]) -> str:
    """The canonical names, for a message; only the first ones of very many."""
    known = [repr(own[0]) for own in names]
    if len(known) > _MOST_NAMES:
        known[_MOST_NAMES:] = [f"and {len(known) - _MOST_NAMES} more"]
    return ", ".join(known) or "none"


_MOST_NAMES = 60

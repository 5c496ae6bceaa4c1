"""The keys under which measures of layers stand in ``circuits.json``."""

ALL = "all"
"""What stands for all layers together where measures have the names of layers for keys."""

REGULARISED = "regularised"
"""What stands for the mean over the regularised layers."""

_LAYER = "layer:"


def layer_key(layer: str) -> str:
    """A layer's name as a key beside :data:`ALL` and :data:`REGULARISED`, another one for each name.

    Example:
        >>> [layer_key(layer) for layer in ("fc1", "all", "layer:all")]
        ['fc1', 'layer:all', 'layer:layer:all']
    """
    fixed = layer in ("", ALL, REGULARISED) or layer.startswith(_LAYER)
    return f"{_LAYER}{layer}" if fixed else layer


def layer_of(key: str) -> str:
    """The layer that a key stands for."""
    return key.removeprefix(_LAYER)

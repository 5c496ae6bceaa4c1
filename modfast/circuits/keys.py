"""The keys of ``circuits.json`` for the measures of layers."""

ALL = "all"
"""The key of the measures of all layers together."""

REGULARISED = "regularised"
"""The key of the mean over the regularised layers."""

_LAYER = "layer:"


def layer_key(layer: str) -> str:
    """Return a layer's key: unique for each name, and different from :data:`ALL` and :data:`REGULARISED`.

    Example:
        >>> [layer_key(layer) for layer in ("fc1", "all", "layer:all")]
        ['fc1', 'layer:all', 'layer:layer:all']
    """
    fixed = layer in ("", ALL, REGULARISED) or layer.startswith(_LAYER)
    return f"{_LAYER}{layer}" if fixed else layer


def layer_of(key: str) -> str:
    """Return the name of the layer with this key."""
    return key.removeprefix(_LAYER)

"""Pictures of weights, spectra, curves and circuits: matplotlib axes in, axes out.

Every function draws into ``ax``, or makes a figure of its own where ``ax`` is None, and returns the axes.
None calls ``plt.show()`` or changes matplotlib's settings. Choose by what you have:

- a weight, a layer, a loss: :func:`weights`
- a weight or a network whose number of clusters you want: :func:`eigengap`
- numbers over steps, of one or several seeds: :func:`curves`
- a :class:`modfast.FaithfulnessCurve`: :func:`faithfulness`
- circuits of several classes or tasks: :func:`circuits`
- what :func:`modfast.cluster_accuracy` returned: :func:`cluster_accuracy`
- a network with a label for each unit: :func:`network`
- any other small matrix: :func:`matrix`
"""

try:
    from .curves import curves, faithfulness
    from .spectra import eigengap
    from .tables import circuits, cluster_accuracy, matrix, network
    from .weight_maps import weights
except ImportError as error:
    raise ImportError(
        f'modfast.plot needs matplotlib ({error}); run: pip install "modfast[experiments]"'
    ) from error

__all__ = [
    "circuits",
    "cluster_accuracy",
    "curves",
    "eigengap",
    "faithfulness",
    "matrix",
    "network",
    "weights",
]

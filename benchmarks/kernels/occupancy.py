"""How many warps of a kernel a multiprocessor runs at a time, by the rules of NVIDIA's occupancy calculator.

The limits are those of the table "Technical Specifications per Compute Capability" of the CUDA C++
Programming Guide; the units in which registers and shared memory are given out are those of
``cuda_occupancy.h`` in the toolkit, to which tests/benchmarks/test_kernel_resources.py holds the results.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32


class Limits(NamedTuple):
    """What a multiprocessor has, and the units in which it gives it out."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536
    registers_of_thread: int = 255
    register_unit: int = 256  # registers are given to a warp in such units
    quarters: int = 4  # a warp lives in one of these, each with an equal share of the registers
    shared_unit: int = 128
    shared_of_system: int = 1024  # that CUDA takes in each block


LIMITS = {
    "8.0": Limits(warps=64, blocks=32, shared=164 * 1024),
    "9.0": Limits(warps=64, blocks=32, shared=228 * 1024),
    "10.0": Limits(warps=64, blocks=32, shared=228 * 1024),
}


class Occupancy(NamedTuple):
    """How much of a multiprocessor a kernel fills."""

    blocks: int
    warps: int  # of all these blocks
    most_warps: int  # that the multiprocessor can hold
    limited_by: str  # "warps", "blocks", "registers" or "shared memory"; several are joined by " and "


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> Occupancy:
    """Return the occupancy of a kernel.

    Args:
        architecture: a key of ``LIMITS``.
        threads: of a block.
        registers: of a thread.
        shared: bytes of shared memory of a block, static and dynamic.

    Example:
        >>> occupancy("9.0", threads=256, registers=120, shared=128)
        Occupancy(blocks=2, warps=16, most_warps=64, limited_by='registers')
    """
    limits = LIMITS[architecture]
    warps = -(-threads // WARP)
    of_warp = _up(registers * WARP, limits.register_unit)
    by_registers = limits.blocks
    if registers > limits.registers_of_thread or of_warp * _up(warps, limits.quarters) > limits.registers:
        by_registers = 0
    elif of_warp:
        by_registers = limits.registers // limits.quarters // of_warp * limits.quarters // warps
    of_block = _up(shared + limits.shared_of_system, limits.shared_unit)
    # In units of blocks; what allows the fewest is the limit.
    allowed = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": by_registers,
        "shared memory": limits.shared // of_block if of_block else limits.blocks,
    }
    blocks = min(allowed.values())
    reasons = [name for name, number in allowed.items() if number == blocks]
    return Occupancy(blocks, blocks * warps, limits.warps, " and ".join(reasons))

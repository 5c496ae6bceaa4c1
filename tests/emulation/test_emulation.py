"""The emulated GPU itself: what CUDA's words do, and that what is wrong is found and named."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from build import EMULATION, LIBRARY, ROOT, build, build_program

pytestmark = [
    pytest.mark.slow,  # compiles
    pytest.mark.skipif(
        sys.platform != "linux"
        or platform.machine() not in ("x86_64", "aarch64")
        or shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None,
        reason="the emulated GPU needs Linux on x86-64 or arm64, and g++",
    ),
]

SEEDS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Run a small kernel by its name, with a seed; returns what it prints."""
    program = build_program(EMULATION / "kernels" / "words.cu", tmp_path_factory.mktemp("words") / "words")

    def run(name, seed):
        done = subprocess.run([program, name, str(seed)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_words_of_cuda(words):
    orders = [words("right", seed).split() for seed in SEEDS]
    threads = list(map(str, range(64)))
    assert orders[0] == threads  # a seed of 0 shuffles nothing
    for other in orders[1:]:
        assert sorted(other, key=int) == threads
        assert other not in [order for order in orders if order is not other]
    assert orders == [words("right", seed).split() for seed in SEEDS]


THREAD = r"kernel {}, block \(\d, 0, 0\), thread \(\d+, 0, 0\): "


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (
            "no_barrier",
            "reads shared variable numbers, byte \\d+, which "
            "(no thread of this block has written|thread \\d+ has written since the last barrier)",
        ),
        (
            "read_then_write",
            "(reads|writes) shared variable number, byte 0, which "
            "(thread 40 has written|thread \\d+ has read|other threads have read) since the last barrier",
        ),
        ("unwritten", "reads shared variable numbers, byte 36, which no thread of this block has written"),
        (
            "from_the_block_before",
            "reads shared variable number, byte 0, which no thread of this block has written",
        ),
        ("out_of_bounds", "writes byte 256 of shared variable numbers, which has 256"),
        ("dynamic_out_of_bounds", "writes byte 252 of dynamic shared memory, which has 252"),
        ("missed_barrier", r"has returned without the __syncthreads of words.cu:\d+, where 40 threads"),
        ("two_barriers", r"waits at the __syncthreads of words.cu:\d+, but thread \(0, 0, 0\) at the"),
        ("mask_without_itself", r"the mask of the shuffle of words.cu:\d+ does not name its own lane \d+"),
        (
            "mask_names_returned",
            r"(the mask of|waits at) the shuffle of words.cu:\d+(,| names) .*lane 3, which has returned",
        ),
        (
            "mask_names_missing",
            r"mask of the vote of words.cu:\d+ names lane \d+, which the block does not have",
        ),
        (
            "masks_differ",
            r"names lane \d+, which (waits at the vote of words.cu:\d+ with another mask|has returned)",
        ),
        ("reads_beyond_mask", r"the shuffle of words.cu:\d+ reads from lane 1, which its mask does not name"),
        ("waits_elsewhere", r"lane (31|\d+), which waits at the (__syncthreads|vote) of words.cu:\d+"),
    ],
)
def test_what_is_wrong_is_named(words, kernel, told, seed):
    printed = words(kernel, seed)
    assert printed.count("error: ") == 1  # the next launch works
    assert re.search(THREAD.format(kernel) + ".*" + told, printed), printed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("large_block", "block (1025, 1, 1) is empty or too large"),
        ("empty_block", "block (0, 1, 1) is empty or too large"),
        ("empty_grid", "grid (0, 1, 1) is empty or too large"),
        ("large_grid", "grid (0, 1, 1) is empty or too large"),
        (
            "much_shared",
            "49153 bytes of dynamic shared memory beside 0 of shared variables, allowed are 49152",
        ),
        (
            "shared_of_both_kinds",
            "48641 bytes of dynamic shared memory beside 512 of shared variables, allowed are 49152",
        ),
    ],
)
def test_limits_of_a_device(words, given, told):
    printed = words(given, 0)
    assert told in printed
    assert printed.count("error: ") == 1


def test_nothing_runs_after_a_kernel_that_failed(words):
    printed = words("after_a_failure", 0)
    assert "without the __syncthreads" in printed
    assert "did not run" in printed
    assert printed.count("error: ") == 1


# --- Kernels of the library, each broken in one place

ENMESHMENT = """
import torch, modfast
weight = torch.randn(300, 200, requires_grad=True)
loss = modfast.enmeshment(weight, modfast.Partition.blocks((300, 200), 4))
torch.autograd.grad(loss, weight)
"""
PRODUCT = """
import torch, modfast.spectral
weight, right, weights = torch.randn(300, 200), torch.randn(200, 16), torch.rand(300)
torch.ops.modfast.similarity_product(weight, 0, 1.0, right, None, weights)
"""
WALK = """
import torch, modfast
from modfast import find_circuit
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
find_circuit(model, torch.randn(40, 12), label=1)
"""

BROKEN = {
    "a barrier is gone": (
        "energy/loss.cu",
        "  __syncthreads();\n  const Split own",
        "  const Split own",
        ENMESHMENT,
        r"kernel modfast::item_scale<8>, block .*, thread .*: reads shared variable factors, byte \d+, which "
        "(no thread of this block has written|thread 0 has written since the last barrier)",
    ),
    "a barrier that one thread alone reaches": (
        "energy/loss.cu",
        "  }\n  __syncthreads();\n  const Split own",
        "  __syncthreads();\n  }\n  const Split own",
        ENMESHMENT,
        # Some other thread may read before one of those that pass by has returned.
        "kernel modfast::item_scale<8>, block .*, thread .*: (has returned without the __syncthreads of "
        "loss.cu|reads shared variable factors, byte .*, which "
        "(no thread of this block has written|thread 0 has written since the last barrier))",
    ),
    "a barrier between two steps is gone": (
        "spectral/products.cu",
        "    thread_multiply(tile, threadIdx.x, sums);\n    __syncthreads();\n",
        "    thread_multiply(tile, threadIdx.x, sums);\n",
        PRODUCT,
        r"kernel modfast::product_tiles<float, 16>, block .*, thread .*: (writes|reads) shared variable "
        "tile, byte .*, which .* since the last barrier",
    ),
    "a mask of half a warp": (
        "energy/loss.cu",
        "__shfl_down_sync(0xffffffffu, sum.across",
        "__shfl_down_sync(0x0000ffffu, sum.across",
        ENMESHMENT,
        "kernel modfast::item_energies<8>, block .*, thread .*: the mask of the shuffle of loss.cu:.* does "
        "not name its own lane",
    ),
    "a mask that names a thread which has left": (
        "spectral/products.cu",
        "const double sum = warp_sum(thread_row_sum(m, similarity, row, tile * kColsOfSums, lane, cols));",
        "double sum = thread_row_sum(m, similarity, row, tile * kColsOfSums, lane, cols);\n"
        "    if (threadIdx.x != 5) sum = warp_sum(sum);",
        "import torch, modfast.spectral\ntorch.ops.modfast.similarity_sums(torch.randn(30, 20), 0, 1.0)",
        "kernel modfast::dense_sums, block .*, thread .*: .*mask.* names lane 5, which",
    ),
    "an index out of a variable's bounds": (
        "energy/loss.cu",
        "of_warp[threadIdx.x / 32] = sum",
        "of_warp[threadIdx.x / 16] = sum",
        ENMESHMENT,
        r"kernel modfast::item_energies<8>, block .*, thread .*: writes byte \d+ of shared variable of_warp, "
        r"which has \d+",
    ),
    "less dynamic shared memory than is used": (
        "circuits/walk.cu",
        "near_numbers * sizeof(double), stream",
        "near_numbers * sizeof(float), stream",
        WALK,
        r"kernel modfast::walk_one_row, block .*, thread .*: writes byte \d+ of dynamic shared memory, which",
    ),
    "more threads than a block has": (
        "energy/loss.cu",
        "launch(add_up<N>, count, kThreads,",
        "launch(add_up<N>, count, 2 * kThreads * kThreads,",
        ENMESHMENT,
        r"kernel modfast::add_up<8>: block \(\d+, 1, 1\) is empty or too large",
    ),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_caught(name, seed, broken):
    *_, code, told = BROKEN[name]
    done = run_emulated(code, broken(name), seed)
    assert done.returncode != 0, "nothing was noticed"
    assert re.search("CUDA: " + told, done.stderr), done.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Build the library with one kernel broken; returns its path."""
    built = {}

    def get(name):
        if name not in built:
            file, old, new, *_ = BROKEN[name]
            text = (ROOT / "csrc" / file).read_text(encoding="utf-8")
            assert text.count(old) == 1
            folder = tmp_path_factory.mktemp("broken")
            changed = folder / file.split("/")[1]
            changed.write_text(text.replace(old, new), encoding="utf-8")
            built[name] = build(folder / LIBRARY.name, changed=changed)
        return built[name]

    return get


def run_emulated(code, library, seed):
    code = f"import modfast.library\nmodfast.library.emulated_library.give('set_seed', {seed})\n{code}"
    environment = os.environ | {"MODFAST_BACKEND": "emulated", "MODFAST_EMULATED_LIBRARY": str(library)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("code", [ENMESHMENT, PRODUCT, WALK], ids=["loss", "product", "walk"])
def test_a_whole_kernel_is_not_complained_of(code):
    done = run_emulated(code, build(), 1)
    assert done.returncode == 0, done.stderr


def test_no_other_library_takes_the_place_of_the_one_that_is_asked_for(tmp_path):
    # As tests import it, to shuffle the order of threads: the last that is loaded registers its kernels.
    library = shutil.copy(build(), tmp_path / LIBRARY.name)
    code = (
        "import modfast.library\n"
        "modfast.library.emulated_library.give('set_seed', 2)\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if '_emulated' in line})"
    )
    done = run_emulated(code, library, 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str({str(library)})

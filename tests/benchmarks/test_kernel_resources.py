"""The page of CUDA kernels: what is read of the compiler, the arithmetic, and that nothing is missing."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.common import pages
from benchmarks.kernels import compiler, table, traffic
from benchmarks.kernels.compiler import Resources
from benchmarks.kernels.occupancy import LIMITS, Occupancy, occupancy
from build_cuda import NVCC_FLAGS, NoToolkitError, find_toolkit

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/speed/cuda-kernels.md"
with_docs = pytest.mark.skipif(not PAGE.exists(), reason="needs the documentation")

# As ptxas of CUDA 13.0 wrote it, with shorter names.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7modfast5scaleILi8EEEvl' for 'sm_100'
ptxas info    : Function properties for _ZN7modfast5scaleILi8EEEvl
    88 bytes stack frame, 156 bytes spill stores, 180 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 88 bytes cumulative stack size, 16 bytes smem
ptxas info    : Compile time = 2266.313 ms
ptxas info    : Function properties for _ZN7modfast6helperEv
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_ZN7modfast4turnEv' for 'sm_100'
ptxas info    : Function properties for _ZN7modfast4turnEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers, 480 bytes cmem[0]
"""
PTX = """\
.version 9.0
.entry _ZN7modfast4turnEv(
	.param .u64 _ZN7modfast4turnEv_param_0
)
.maxntid 256, 1, 1
{
}
.visible .entry _ZN7modfast5scaleILi8EEEvl(
	.param .u64 _ZN7modfast5scaleILi8EEEvl_param_0
)
.maxntid 16, 8, 1
.minnctapersm 2
{
}
.entry _ZN7modfast4freeEv(
)
{
}
"""


def kept() -> dict:
    return json.loads(table.KEPT.read_text(encoding="utf-8"))


@pytest.fixture
def toolkit():
    try:
        return find_toolkit(torch.version.cuda or "13")
    except NoToolkitError as error:
        pytest.skip(str(error))


# --- What the compiler says


def test_report_of_the_compiler():
    assert compiler.read_report(REPORT) == {
        "_ZN7modfast5scaleILi8EEEvl": (88, 156, 180, 128, 1, 16),
        "_ZN7modfast4turnEv": (0, 0, 0, 22, 0, 0),
    }


def test_report_without_a_stack_is_refused():
    with pytest.raises(compiler.CompilerError, match="no line about the stack of _Z3onev"):
        compiler.read_report("Compiling entry function '_Z3onev' for 'sm_90'\nUsed 2 registers\n")


def test_threads_of_a_block():
    assert compiler.read_threads(PTX) == {"_ZN7modfast4turnEv": 256, "_ZN7modfast5scaleILi8EEEvl": 128}


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt")
def test_names():
    mangled = "_ZN7modfast12_GLOBAL__N_113product_tilesIfLi8EEEvNS_7ProductIT_EEll"
    assert compiler.demangle([mangled]) == {mangled: "product_tiles<float, 8>"}
    assert compiler.demangle([]) == {}


def test_kernels_of_a_source():
    text = """
    template <class C, int N>
    __global__ void __launch_bounds__(kWarp* kAdders)
        one(const C* pieces, int64_t count) {}
    __global__ void __launch_bounds__(kThreads, 2) two(int a) {}
    __global__ void three() { four(); }
    """
    assert compiler.kernels_of(text) == {"one", "two", "three"}


def test_a_source_from_end_to_end(toolkit, tmp_path):
    source = tmp_path / "csrc/family/one.cu"
    source.parent.mkdir(parents=True)
    source.write_text(
        """
        namespace modfast {
        template <int N> __global__ void __launch_bounds__(64) add(float* numbers) {
          __shared__ float shared[N];
          shared[threadIdx.x] = numbers[threadIdx.x];
          __syncthreads();
          numbers[threadIdx.x] += shared[63 - threadIdx.x];
        }
        template __global__ void add<64>(float*);
        }
        """
    )
    (found,) = compiler.compile_all(toolkit, [source], ["9.0"])
    assert found == Resources(
        kernel="add<64>",
        source="family/one.cu",
        architecture="9.0",
        threads=64,
        registers=found.registers,
        spill_stores=0,
        spill_loads=0,
        stack=0,
        barriers=1,
        shared=256,
    )
    assert 4 <= found.registers <= 32

    source.write_text("__global__ void unbounded(float* n) { n[0] = 1.0f; }")
    with pytest.raises(compiler.CompilerError, match=r"without __launch_bounds__ in .*: unbounded"):
        compiler.compile_source(toolkit, source, "9.0")
    source.write_text("__global__ void broken(")
    with pytest.raises(compiler.CompilerError, match="nvcc failed"):
        compiler.compile_source(toolkit, source, "9.0")


# --- Occupancy


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # 32 registers of each of 2048 threads fill 65,536.
        (("9.0", 256, 32, 0), Occupancy(8, 64, 64, "warps and registers")),
        (("9.0", 256, 33, 0), Occupancy(6, 48, 64, "registers")),
        # 172 become 176: 5,632 for a warp, of which two fit into a quarter of 16,384.
        (("8.0", 256, 172, 16), Occupancy(1, 8, 64, "registers")),
        (("9.0", 1024, 64, 0), Occupancy(1, 32, 64, "registers")),
        # Registers are checked as if warps came in fours.
        (("9.0", 33, 255, 0), Occupancy(4, 8, 64, "registers")),
        (("9.0", 1024, 72, 0), Occupancy(0, 0, 64, "registers")),
        (("9.0", 32, 16, 0), Occupancy(32, 32, 64, "blocks")),
        # 228 KB, and 1 KB more for each block.
        (("9.0", 128, 32, 56 * 1024), Occupancy(4, 16, 64, "shared memory")),
        (("9.0", 128, 32, 56 * 1024 + 1), Occupancy(3, 12, 64, "shared memory")),
        (("8.0", 128, 32, 40 * 1024), Occupancy(4, 16, 64, "shared memory")),
    ],
)
def test_occupancy(given, expected):
    assert occupancy(*given) == expected


CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, warps, blocks, threads, registers;
  long in_all, shared;
  while (std::scanf("%d %d %d %ld %d %d %ld", &major, &warps, &blocks, &in_all, &threads, &registers,
                    &shared) == 7) {
    cudaOccDeviceProp gpu;
    gpu.computeMajor = major;
    gpu.computeMinor = 0;
    gpu.maxThreadsPerBlock = 1024;
    gpu.maxThreadsPerMultiprocessor = 32 * warps;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536;
    gpu.warpSize = 32;
    gpu.sharedMemPerBlock = 49152;
    gpu.sharedMemPerBlockOptin = in_all - 1024;
    gpu.sharedMemPerMultiprocessor = in_all;
    gpu.reservedSharedMemPerBlock = 1024;
    gpu.numSms = 100;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.maxDynamicSharedSizeBytes = in_all - 1024;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads, shared)) return 1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_occupancy_is_that_of_the_toolkit(toolkit, tmp_path):
    if not (toolkit.include / "cuda_occupancy.h").is_file():
        pytest.skip("the toolkit has no cuda_occupancy.h")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    build = ["g++", "-w", f"-I{toolkit.include}", "-o", tmp_path / "calculator", tmp_path / "calculator.cpp"]
    subprocess.run(build, check=True)
    given = [
        (architecture, threads, registers, shared)
        for architecture in LIMITS
        for threads in (32, 33, 96, 128, 250, 256, 512, 1024)
        for registers in (16, 31, 40, 64, 72, 100, 128, 172, 255)
        for shared in (0, 129, 12416, 33920, 49152, 100000, 160000)
    ]
    lines = [
        f"{architecture.split('.')[0]} {LIMITS[architecture].warps} {LIMITS[architecture].blocks} "
        f"{LIMITS[architecture].shared} {threads} {registers} {shared}\n"
        for architecture, threads, registers, shared in given
    ]
    done = subprocess.run(
        [tmp_path / "calculator"], input="".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.splitlines()]
    assert len(expected) == len(given)
    assert [occupancy(*each).blocks for each in given] == expected


# --- The page


def test_every_kernel_has_a_formula():
    missing = sorted(compiler.all_kernels() - traffic.TRAFFIC.keys())
    assert not missing, "give these a formula in benchmarks/kernels/traffic.py"


def test_kept_results_are_of_the_kernels_and_flags_that_there_are():
    renew = "renew docs/speed/cuda-kernels.md as benchmarks/README.md says"
    report = kept()
    assert {traffic.base_name(each["kernel"]) for each in report["kernels"]} == compiler.all_kernels(), renew
    of_sources = {str(path.relative_to(path.parents[1])) for path in compiler.sources()}
    assert {each["source"] for each in report["kernels"]} <= of_sources, renew
    assert report["flags"] == list(NVCC_FLAGS), renew


# Known to spill, and on which architecture; docs/speed/cuda-kernels.md says why they are left as they are.
SPILLING = {
    ("item_scale<120>", "10.0"),
    ("item_scale<8>", "10.0"),
    ("move_nodes_of_side", "10.0"),
    ("product_tiles<float, 16>", "8.0"),
    ("walk_one_row", "10.0"),
    ("walk_one_row", "8.0"),
    ("walk_one_row", "9.0"),
}


def test_no_other_kernel_spills():
    spilling = {
        (each["kernel"], each["architecture"])
        for each in kept()["kernels"]
        if each["spill_stores"] or each["spill_loads"]
    }
    assert spilling == SPILLING


@with_docs
def test_the_page_has_a_reason_for_each_spill():
    before, _ = pages.outside_markers(PAGE.read_text(encoding="utf-8"), "kernels")
    reasons = before.partition("**Spilled registers**")[2]
    assert reasons
    assert not [kernel for kernel, _ in SPILLING if f"`{traffic.base_name(kernel)}" not in reasons]


@with_docs
def test_the_page_is_what_the_results_give():
    before, after = pages.outside_markers(PAGE.read_text(encoding="utf-8"), "kernels")
    assert PAGE.read_text(encoding="utf-8") == f"{before}\n{table.markdown(kept())}{after}"


def report_of(*kernels: Resources) -> dict:
    return {
        "date": "2026-01-02",
        "nvcc": "13.0",
        "flags": ["-O3"],
        "architectures": ["8.0", "9.0", "10.0"],
        "kernels": [each._asdict() for each in kernels],
    }


def in_three(kernel: str, **changes: int) -> list[Resources]:
    numbers = {
        "threads": 256,
        "registers": 40,
        "spill_stores": 0,
        "spill_loads": 0,
        "stack": 0,
        "barriers": 1,
    }
    given = {"shared": 0} | numbers | changes
    return [Resources(kernel, "family/one.cu", name, **given) for name in ("10.0", "8.0", "9.0")]


def test_tables():
    report = report_of(
        *in_three("unheard_of<8>"), *in_three("walk_one_row", threads=1024, registers=64, spill_loads=4)
    )
    resources, spills, times = (rows for _, _, rows, _ in table.tables(report))
    assert resources == [
        ["`unheard_of<8>`", "family/one.cu", "256", "0", "1", *["40, 48 (registers)"] * 3],
        [
            *("`walk_one_row`", "family/one.cu", "1024", "all", "1"),
            *["64, 32 (registers and shared memory)"] * 3,
        ],
    ]
    assert spills == [["`walk_one_row`", *["0, 4"] * 3]]
    assert times[0] == ["`unheard_of<8>`", *["unknown"] * 6]
    # 4096 inputs of 1,001 float64 numbers at 1,555 GB/s; one block on 108 multiprocessors.
    assert times[1][3:5] == ["32.8 MB", "21.09 (< 0.1)"]
    assert "sm_100" in table.markdown(report)


def test_bytes_of_kernels():
    # The loss and its gradient read a weight twice, and read and write the gradient.
    parts = [traffic.traffic(f"{name}<8>").bytes for name in ("item_energies", "item_scale")]
    assert sum(parts) == pytest.approx(4 * 4 * 4096**2, rel=0.01)
    # 20 million entries of 8 bytes, a million starts of 4, two times a million float64 vectors of 8.
    assert traffic.traffic("sparse_product<double, 8>").bytes == 292_000_004
    # As spectral/kmeans.cu says: 92 MB, and the pieces, which are written by one kernel and read by the next,
    # together 7 MB.
    pieces = traffic.traffic("add_records").bytes
    assert 2 * pieces == pytest.approx(7e6, rel=0.02)
    assert traffic.traffic("assign<32>").bytes - pieces == pytest.approx(92e6, rel=1e-3)
    # A basis of 64 float64 vectors, the 16 vectors, and the weights; pieces of 992 nodes by two groups.
    moved = traffic.traffic("inner_tiles<double, 16>")
    assert moved.bytes == 8 * 81 * 1_000_000 + 8 * 1009 * 2 * 64 * 16
    assert moved.blocks == 1009
    # It writes 16 vectors in the place of 64 that it reads.
    assert traffic.traffic("rotate_tiles<float, 16>").bytes == 4 * 80 * 1_000_000 + 8 * 64 * 16
    # Both kernels read the graph once.
    parts = [traffic.traffic(name).bytes for name in ("cut_of_nodes", "find_nodes_that_gain")]
    assert parts[0] - parts[1] == 15 * 1_000_000 - 24 * 20
    assert traffic.traffic("unheard_of") is None


def test_shared_memory_that_a_launch_adds():
    # An A100 has room for five blocks of 30,000 bytes and the 1 KB for CUDA, but for four with the sums too.
    (_, _, _, own, *_), *_ = table.resource_rows(report_of(*in_three("assign<32>", shared=30_000)))
    assert own == "30,000 + 3,536"
    for kernel, blocks in (("unheard_of<8>", 5), ("assign<32>", 4)):
        _, on_an_a100, _ = in_three(kernel, shared=30_000)
        assert table.occupancy_of(on_an_a100).blocks == blocks


def test_kept_results_can_be_shown(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- kernels table: begin -->\n<!-- kernels table: end -->\n")
    table.main(["--kept", "--json", str(tmp_path / "kept.json"), "--markdown", str(page)])
    assert "item_energies<8>" in capsys.readouterr().out
    assert json.loads((tmp_path / "kept.json").read_text()) == kept()
    assert table.markdown(kept()) in page.read_text()


def test_without_a_toolkit_it_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(SystemExit, match="2"):
        table.main([])
    assert "/nowhere/bin/nvcc does not run" in capsys.readouterr().err

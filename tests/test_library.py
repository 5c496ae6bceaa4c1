"""The compiled library: what it says of itself, how it fails to load, and what ties it to PyTorch."""

import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import modfast
from modfast.binary import SUFFIX
from modfast.requirements import OLDEST_TORCH

PACKAGE = Path(modfast.__file__).parent
LIBRARY = PACKAGE / f"_C{SUFFIX}"
LIBRARIES = [LIBRARY, PACKAGE / f"_cuda{SUFFIX}"] if modfast.backend()["cuda"] else [LIBRARY]
TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"
BROKEN = b"\x7fELF and no more"


def test_backend():
    found = modfast.backend()
    assert found["backend"] == "compiled"
    assert found["version"] == modfast.__version__
    assert found["cpu_compiled"][0] in ("baseline", "neon")
    assert found["cpu_available"] == [
        name for name in found["cpu_compiled"] if name in found["cpu_available"]
    ]
    assert found["cpu"] == found["cpu_available"][-1]
    assert found["cuda"] is bool(found["cuda_architectures"])
    assert found["openmp"] is torch.backends.openmp.is_available()
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__


def test_backend_names_the_architectures():
    found = modfast.backend()
    if not found["cuda"]:
        pytest.skip("built without the CUDA library, or this PyTorch has no CUDA")
    for name in found["cuda_architectures"]:
        assert re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)
    found["cuda_architectures"].clear()
    assert modfast.backend()["cuda_architectures"]


def test_backend_follows_the_number_of_threads(set_threads):
    set_threads(3)
    assert modfast.backend()["threads"] == 3


def test_empty_variables_choose_nothing(run_python):
    code = "import modfast; print(modfast.backend()['cpu'], modfast.backend()['backend'])"
    done = run_python(code, MODFAST_CPU="", MODFAST_BACKEND="")
    assert done.stdout.split() == [modfast.backend()["cpu_available"][-1], "compiled"]


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("MODFAST_CPU", "MODFAST_CPU is 'AVX-1024'; this machine can run: "),
        ("MODFAST_BACKEND", "MODFAST_BACKEND must be 'compiled', 'reference' or 'emulated', got 'AVX"),
    ],
)
def test_bad_variables(run_python, variable, told):
    done = run_python("import modfast.library", **{variable: "AVX-1024"})
    assert done.returncode == 1
    assert f"ImportError: {told}" in done.stderr


def test_an_emulated_gpu_that_is_not_built(run_python, tmp_path):
    environment = {"MODFAST_BACKEND": "emulated", "MODFAST_EMULATED_LIBRARY": str(tmp_path / "no-library")}
    done = run_python("import modfast.library", **environment)
    assert done.returncode == 1
    assert "ImportError: MODFAST_EMULATED_LIBRARY must be the path of a compiled library" in done.stderr


def test_old_and_new_pytorch(run_python):
    # In one process: a module whose import failed is imported anew.
    code = (
        "import torch\n"
        "for version in ('1.13.1', '2.9.0+cpu', '2.10.1', '2.11.0', '3.0.0a0+git1234567'):\n"
        "    torch.__version__ = version\n"
        "    try:\n"
        "        import modfast\n"
        "        print('loaded with', modfast.backend()['torch'])\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for version, line in zip(("1.13.1", "2.9.0+cpu", "2.10.1"), lines, strict=False):
        assert line.startswith(f"modfast needs PyTorch 2.11 or later, found {version}. Run: pip install")
    assert lines[3:] == ["loaded with 2.11.0", "loaded with 3.0.0a0+git1234567"]


def copy_without_libraries(folder):
    copy = folder / "modfast"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


def importing(copy):
    # An editable installation has a finder of its own, which would find the library of the checkout.
    return (
        "import sys\n"
        f"sys.path.insert(0, {str(copy.parent)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, '__module__', '').startswith('_frozen')\n"
        "                    or getattr(f, '__name__', '') in ('BuiltinImporter', 'FrozenImporter')]\n"
        "import modfast.library\n"
    )


def cut_off(after):
    """The first bytes of the library, as a full disk or a broken download leaves them."""
    return LIBRARY.read_bytes()[:after]


LIBRARIES_THAT_DO_NOT_LOAD = {
    "broken": lambda: BROKEN,
    "empty": lambda: b"",
    "cut off within the tables": lambda: cut_off(300),
    "cut off within the code": lambda: cut_off(300_000),
    "cut off at the very end": lambda: cut_off(-1),
    "a library of others": lambda: next(TORCH_LIBRARIES.glob("*torch_global_deps.*")).read_bytes(),
}


@pytest.mark.parametrize("make", LIBRARIES_THAT_DO_NOT_LOAD.values(), ids=LIBRARIES_THAT_DO_NOT_LOAD)
def test_a_library_that_does_not_load(run_python, tmp_path, make):
    copy = copy_without_libraries(tmp_path)
    (copy / LIBRARY.name).write_bytes(make())
    done = run_python(importing(copy))
    assert done.returncode == 1
    assert "ImportError: modfast's compiled library cannot be loaded" in done.stderr
    assert "run: pip install --no-build-isolation -e ." in done.stderr


def test_a_link_that_leads_nowhere_is_a_library_that_does_not_load(run_python, tmp_path):
    copy = copy_without_libraries(tmp_path)
    (copy / LIBRARY.name).symlink_to(tmp_path / "nowhere")
    done = run_python(importing(copy))
    assert "ImportError: modfast's compiled library cannot be loaded" in done.stderr


def test_a_pipe_is_a_library_that_does_not_load(run_python, tmp_path):
    copy = copy_without_libraries(tmp_path)
    os.mkfifo(copy / LIBRARY.name)
    done = run_python(importing(copy))
    assert "ImportError: modfast's compiled library cannot be loaded" in done.stderr
    assert "is no file" in done.stderr


VERSION = f"{modfast.__version__}\0".encode()
STALE = {
    "of another version": (
        VERSION,
        b"9.9.9\0",
        f"is of modfast 9.9.9, and the package is {modfast.__version__}",
    ),
    "without an operator": (b"\0block_scale(", b"\0block_other(", "has no operator 'block_scale'"),
}


@pytest.mark.parametrize(("now", "then", "told"), STALE.values(), ids=STALE)
def test_a_library_of_other_sources_is_refused(run_python, tmp_path, now, then, told):
    copy = copy_without_libraries(tmp_path)
    contents = LIBRARY.read_bytes()
    assert now in contents
    assert len(now) == len(then)
    (copy / LIBRARY.name).write_bytes(contents.replace(now, then))
    done = run_python(importing(copy) + "import modfast.energy")
    assert done.returncode == 1
    assert "ImportError: modfast's compiled library cannot be loaded" in done.stderr
    assert told in done.stderr
    assert "run: pip install --no-build-isolation -e ." in done.stderr


def test_an_instruction_set_that_is_no_text(run_python):
    done = run_python("import os\nos.environb[b'MODFAST_CPU'] = b'\\xff'\nimport modfast.library")
    assert "ImportError: MODFAST_CPU is '\\xff'; this machine can run: " in done.stderr


WITHOUT_LIBRARY = """
import modfast
modfast.library.backend()
from modfast.spectral import spectral_cluster
print(modfast.backend())
"""


def test_without_a_library_the_reference_computes_and_one_warning_says_so(run_python, tmp_path):
    copy = copy_without_libraries(tmp_path)
    done = run_python(importing(copy) + WITHOUT_LIBRARY + EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning") == 1
    assert "RuntimeWarning: modfast has no compiled library here" in done.stderr
    assert "install a C++ compiler (for example: apt install g++) and then modfast again" in done.stderr
    told, _, outputs = done.stdout.partition("\n")
    told = ast.literal_eval(told)
    assert (told["backend"], told["version"], told["cpu"]) == ("reference", modfast.__version__, None)
    assert [told[name] for name in ("cpu_compiled", "cpu_available", "cuda_architectures")] == [[], [], []]
    assert told["cuda"] is False
    # The same numbers as with a library whose operators are not called.
    with_library = run_python(EVERYTHING, MODFAST_BACKEND="reference")
    assert outputs == with_library.stdout
    assert "Warning" not in with_library.stderr


@pytest.mark.parametrize("options", [{"MODFAST_BACKEND": "reference"}, {"PYTHONWARNINGS": "ignore"}])
def test_who_knows_that_there_is_no_library_is_not_warned(run_python, tmp_path, options):
    code = importing(copy_without_libraries(tmp_path)) + "print(modfast.backend()['backend'])"
    if "PYTHONWARNINGS" in options:  # a fork does not read the variable
        code = "import warnings\nwarnings.simplefilter('ignore')\n" + code
    done = run_python(code, **options)
    assert (done.stdout, done.stderr) == ("reference\n", "")


@pytest.mark.parametrize("backend", ["compiled", "emulated"])
def test_a_library_that_is_asked_for_and_is_not_there(run_python, tmp_path, backend):
    done = run_python(importing(copy_without_libraries(tmp_path)), MODFAST_BACKEND=backend)
    assert done.returncode == 1
    assert "ImportError: modfast's compiled library cannot be loaded" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("torch_cuda", [None, "13.0"], ids=["CPU PyTorch", "CUDA PyTorch"])
@pytest.mark.parametrize("library", [None, BROKEN], ids=["absent", "broken"])
def test_missing_cuda_library(run_python, tmp_path, torch_cuda, library):
    copy = copy_without_libraries(tmp_path)
    (copy / LIBRARY.name).symlink_to(LIBRARY)
    if library is not None:
        (copy / f"_cuda{SUFFIX}").write_bytes(library)
    code = (
        f"import torch\ntorch.version.cuda = {torch_cuda!r}\n{importing(copy)}"
        "print(modfast.backend()['cuda'], modfast.backend()['cuda_architectures'])"
    )
    done = run_python(code)
    if library is not None and torch_cuda is not None:
        assert done.returncode == 1
        assert "ImportError: modfast's CUDA library cannot be loaded" in done.stderr
        assert "run: pip install --no-build-isolation -e ." in done.stderr
    else:
        assert done.stdout == "False []\n", done.stderr


EVERYTHING = """
import torch, modfast
from modfast import *
from torch import nn
partition = Partition([0, 1, -1, 1], [1, 0, 0], 2)
weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
total = enmeshment(weight, partition) + 2 * clusterability(weight, partition) ** 2
total = total + block_energy(weight, partition)[0, 1] + block_inner(weight, weight.sin(), partition).sum()
total = total + block_scale(weight, torch.ones(2, 2).double(), partition).square().sum()
(first,) = torch.autograd.grad(total, weight, create_graph=True)
(second,) = torch.autograd.grad(first.square().sum(), weight)
model = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64))
model[0].weight = nn.Parameter(weight.detach().clone())
loss = EnmeshmentLoss(model, {"0": partition})
value = loss.accumulate_grad_(0.7)
gradient = model[0].weight.grad
twice = torch.func.jacrev(torch.func.grad(lambda w: enmeshment(w, partition)))(weight.detach())
print(modfast.backend()["backend"])
for tensor in (total, first, second, value, loss(), gradient, twice):
    print(*tensor.detach().flatten().tolist())
"""


# The operators of the CPU replaced by ones that end the program.
REFUSE = """
import torch, modfast.energy
def refuse(*args):
    raise SystemExit("an operator was called")
library = torch.library.Library("modfast", "IMPL")
names = "block_inner block_scale enmeshment enmeshment_grad add_enmeshment_grad_ accumulate_enmeshment_grad_"
for name in names.split():
    library.impl(name, refuse, "CPU", allow_override=True)
"""


def test_reference_backend_gives_the_same_numbers_without_the_operators(run_python):
    outputs = {}
    for backend, code in (("compiled", EVERYTHING), ("reference", REFUSE + EVERYTHING)):
        done = run_python(code, MODFAST_BACKEND=backend)
        assert done.returncode == 0, done.stderr
        name, *lines = done.stdout.splitlines()
        assert name == backend
        outputs[backend] = [[float(number) for number in line.split()] for line in lines]
    for fast, slow in zip(outputs["compiled"], outputs["reference"], strict=True):
        # Both in float64; at most second derivatives of sums of twelve numbers.
        fast, slow = torch.tensor(fast, dtype=torch.float64), torch.tensor(slow, dtype=torch.float64)
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    done = run_python(REFUSE + EVERYTHING, MODFAST_BACKEND="compiled")
    assert "an operator was called" in done.stderr


def read_library(library, tool, *options):
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}, of GNU binutils")
    command = [tool, *options, library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.stem)
def test_bound_to_pytorch_by_the_stable_interface_alone(library):
    listing = read_library(library, "nm", "--dynamic", "--undefined-only")
    names = [line.split()[-1] for line in listing.splitlines()]
    # The C functions of the stable interface are what the library is expected to ask for.
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in names)
    unstable = [name for name in names if re.match(r"_Z.*(2at|3c10|5torch|5caffe)", name)]
    assert unstable == []
    # One build serves every Python, since it calls none.
    assert [name for name in names if re.match(r"_?Py[A-Z_]", name)] == []
    # The runtime of CUDA is within the library, whichever PyTorch brings.
    assert [name for name in names if re.match(r"_*cuda", name)] == []


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.stem)
def test_needs_no_library_that_changes_with_pytorch(library):
    needed = re.findall(r"NEEDED.*\[(.+)\]", read_library(library, "readelf", "--dynamic"))
    assert any(name.startswith("libtorch_cpu.") for name in needed)
    assert [name for name in needed if re.match(r"lib(torch_python|python.*|c10_cuda|cudart)\b", name)] == []


def test_oldest_pytorch_is_the_one_that_is_documented():
    assert OLDEST_TORCH == (2, 11)
    assert hasattr(torch.ops.modfast, "accumulate_enmeshment_grad_")


def registered(key):
    """The names of our operators that have a kernel for a dispatch key."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("modfast::")]
    return {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}


# Steps that others make one by one, joined to one call, which is faster on a CPU; see docs/limits.md.
JOINED = {
    "modfast::accumulate_packed_enmeshment_grad_",
    "modfast::move_sides",
    "modfast::numbered_as_met",
    "modfast::similarity_singular_vectors",
}


def test_every_operator_has_a_kernel_for_each_device_of_the_build():
    assert len(registered("CPU")) == 27
    assert registered("CPU") > JOINED
    assert registered("CUDA") == (registered("CPU") - JOINED if modfast.backend()["cuda"] else set())


def test_threads_that_call_at_once_get_what_each_would_get_alone():
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(96, 130, generator=generator, requires_grad=True)
        partition = modfast.Partition.blocks((96, 130), 2 + seed % 5)
        loss = modfast.enmeshment(weight, partition)
        loss.backward()
        found = modfast.spectral_cocluster(weight.detach(), 3, seed=seed)
        return loss.detach(), weight.grad, found.row_labels, found.col_labels, modfast.backend()["cpu"]

    alone = [work(seed) for seed in range(24)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # with a lock of the interpreter, threads take turns often
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(work, list(range(24)) * 4))
    finally:
        sys.setswitchinterval(switch)
    for expected, got in zip(alone * 4, together, strict=True):
        assert got[-1] == expected[-1]
        assert all(map(torch.equal, got[:-1], expected[:-1]))

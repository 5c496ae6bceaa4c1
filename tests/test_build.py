"""What setup.py builds the CUDA library with: toolkits, architectures, and what it says of bad settings."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

# What nvcc prints of its plans, on its standard error, as far as it is read.
NVCC = """#!/bin/sh
case "$1" in
--dryrun) /bin/cat >&2 <<'END'
#$ _HERE_={home}/bin
#$ TOP={home}/bin/..
#$ INCLUDES="-I{home}/bin/../include"
#$ LIBRARIES=  "-L{home}/bin/../lib/stubs" "-L{home}/bin/../lib"
#$ gcc -E -x c++ -D__CUDACC_VER_MAJOR__={major} -D__CUDACC_VER_MINOR__={minor} -m64 "/dev/null"
END
;;
--list-gpu-arch) printf 'compute_%s\\n' {architectures};;
esac
"""


@pytest.fixture
def build_cuda(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return import_module("build_cuda")


@pytest.fixture
def bare(build_cuda, monkeypatch, tmp_path):
    """The module, on a machine without any toolkit."""
    monkeypatch.setattr(build_cuda, "USUAL", tmp_path / "usual")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    return build_cuda


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_toolkit(home, release="13.0", architectures="75 80 86 90 100 120 121", runtime="cudart_static"):
    major, minor = release.split(".")
    script = NVCC.format(home=home, major=major, minor=minor, architectures=architectures)
    write_program(home / "bin/nvcc", script)
    (home / "lib").mkdir()
    (home / f"lib/lib{runtime}.a").touch()
    return home


def test_a_toolkit_as_its_compiler_describes_it(bare, tmp_path):
    home = make_toolkit(tmp_path / "a folder", release="13.2", architectures="75 100")
    assert bare.read_toolkit(home / "bin/nvcc") == bare.Toolkit(
        home, "13.2", home / "include", home / "lib", ("7.5", "10.0")
    )


def test_the_toolkit_at_hand_is_understood(build_cuda):
    try:
        toolkit = build_cuda.find_toolkit(torch.version.cuda or "13")
    except build_cuda.NoToolkitError:
        pytest.skip("needs a CUDA toolkit")
    nvcc = toolkit.home / "bin/nvcc"
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"release {toolkit.release}," in told
    assert (toolkit.include / "cuda_runtime.h").is_file()
    assert (toolkit.libraries / "libcudart_static.a").is_file()
    assert "9.0" in toolkit.architectures


def test_the_order_of_the_search(bare, tmp_path, monkeypatch):
    def found():
        return bare.find_toolkit("13.2").home

    # The newest first, by number; other major releases and those that do not work are passed over.
    oldest = make_toolkit(tmp_path / "usual/cuda-13.0")
    make_toolkit(tmp_path / "usual/cuda-12.9", release="12.9")
    make_toolkit(tmp_path / "usual/cuda-14.0", release="14.0")
    make_toolkit(tmp_path / "usual/cuda-13.20", runtime="cudart")
    write_program(tmp_path / "usual/cuda-13.30/bin/nvcc", "#!/bin/sh\necho broken; exit 1\n")
    write_program(tmp_path / "usual/cuda-13.40/bin/nvcc", "#!/bin/sh\n")
    assert found() == oldest
    newer = make_toolkit(tmp_path / "usual/cuda-13.10")
    assert found() == newer
    usual = make_toolkit(tmp_path / "usual/cuda")
    assert found() == usual
    # On the PATH lies a script that starts the compiler of a toolkit elsewhere.
    elsewhere = make_toolkit(tmp_path / "elsewhere")
    write_program(tmp_path / "path/nvcc", f'#!/bin/sh\nexec "{elsewhere}/bin/nvcc" "$@"\n')
    assert found() == elsewhere
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        home = make_toolkit(tmp_path / variable)
        monkeypatch.setenv(variable, str(home))
        assert found() == home
    # One that is named is the only one.
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(bare.NoToolkitError, match="nowhere/bin/nvcc does not run: No such file"):
        found()
    monkeypatch.setenv("CUDA_HOME", "")
    assert found() == tmp_path / "CUDA_PATH"


def test_what_is_said_of_toolkits_that_do_not_serve(bare, tmp_path):
    make_toolkit(tmp_path / "usual/cuda", release="12.9")
    make_toolkit(tmp_path / "usual/cuda-13.0", runtime="cudart")
    write_program(tmp_path / "usual/cuda-13.1/bin/nvcc", "#!/bin/sh\nexit 3\n")
    write_program(tmp_path / "usual/cuda-13.2/bin/nvcc", "#!/bin/sh\n")
    with pytest.raises(bare.NoToolkitError) as raised:
        bare.find_toolkit("13.2")
    for said in (
        "no toolkit of CUDA 13",
        "cuda/bin/nvcc is of CUDA 12.9",
        "cuda-13.0/bin/nvcc has no libcudart_static.a",
        "cuda-13.1/bin/nvcc does not run: exit status 3",
        "cuda-13.2/bin/nvcc does not tell where its toolkit is",
        "Looked at CUDA_HOME and CUDA_PATH",
        "Set CUDA_HOME",
    ):
        assert said in str(raised.value)


def test_settings_where_there_is_a_toolkit(bare, tmp_path, capsys):
    home = make_toolkit(tmp_path / "usual/cuda")
    assert bare.choose_toolkit("1", "13.2").home == home
    assert bare.choose_toolkit("auto", "13.2").home == home
    assert bare.choose_toolkit("0", "13.2") is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("torch_cuda", "said"),
    [("13.2", "no toolkit of CUDA 13"), (None, "this PyTorch was built without CUDA")],
)
def test_settings_where_the_library_cannot_be_built(bare, tmp_path, capsys, torch_cuda, said):
    make_toolkit(tmp_path / "usual/cuda", release="12.9")
    assert bare.choose_toolkit("0", torch_cuda) is None
    assert capsys.readouterr().err == ""
    assert bare.choose_toolkit("auto", torch_cuda) is None
    assert f"modfast is built without its CUDA library: {said}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=f"MODFAST_CUDA is '1', but {said}"):
        bare.choose_toolkit("1", torch_cuda)


@pytest.mark.parametrize("setting", ["yes", "2", "AUTO", " 1"])
def test_other_settings(bare, setting):
    with pytest.raises(SystemExit, match=f"MODFAST_CUDA must be '0', '1' or 'auto', got '{setting}'"):
        bare.choose_toolkit(setting, "13.2")


@pytest.fixture
def toolkit(build_cuda):
    known = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0", "12.1")
    return build_cuda.Toolkit(Path("/cuda"), "13.0", Path("/cuda/include"), Path("/cuda/lib"), known)


@pytest.mark.parametrize(
    ("setting", "architectures"),
    [
        ("9.0", ["9.0"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        (" 8.0  9.0a;; 10.0f\n", ["8.0", "9.0a", "10.0f"]),
        ("9.0 8.0 9.0", ["9.0", "8.0"]),
        ("", ["7.5", "8.0", "9.0", "10.0", "12.0+PTX"]),
        (" ; ", ["7.5", "8.0", "9.0", "10.0", "12.0+PTX"]),
    ],
)
def test_architectures(build_cuda, toolkit, setting, architectures):
    assert build_cuda.choose_architectures(toolkit, setting) == architectures


def test_architectures_of_an_older_toolkit(build_cuda, toolkit):
    older = toolkit._replace(architectures=("7.0", "7.5", "8.0", "9.0"))
    assert build_cuda.choose_architectures(older, "") == ["7.5", "8.0", "9.0+PTX"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("Hopper", r"must list numbers of architectures.*got 'Hopper' in 'Hopper'"),
        ("8.0,9.0", r"got '8.0,9.0' in '8.0,9.0'"),
        ("8.0;90", r"got '90' in '8.0;90'"),
        ("9.0+ptx", r"got '9.0\+ptx'"),
        ("native", r"got 'native'"),
        ("7.0;9.0", r"asks for '7.0'; the compiler of CUDA 13.0 in /cuda serves 7.5, 8.0, .*12.1"),
    ],
)
def test_bad_architectures(build_cuda, toolkit, setting, said):
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST.*{said}"):
        build_cuda.choose_architectures(toolkit, setting)


def test_options_of_the_compiler(build_cuda):
    assert build_cuda.architecture_flags(["8.0", "9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_setup_reads_the_setting():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "MODFAST_CUDA": "maybe"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "MODFAST_CUDA must be '0', '1' or 'auto', got 'maybe'" in done.stderr


@pytest.fixture
def build_compiler(monkeypatch, tmp_path):
    """The module, on a machine without any compiler."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CXX", "")
    module = import_module("build_compiler")
    monkeypatch.setattr(module.sysconfig, "get_config_var", {"CXX": "g++-99 -pthread"}.get)
    return module


def test_no_compiler_is_found_where_there_is_none(build_compiler):
    assert build_compiler.has_compiler() is False
    assert os.environ["CXX"] == ""


@pytest.mark.parametrize(
    ("name", "chosen"), [("c++", ""), ("g++", "g++"), ("clang++", "clang++"), ("g++-99", "g++-99")]
)
def test_a_compiler_on_the_path(build_compiler, tmp_path, name, chosen):
    write_program(tmp_path / "path" / name, "#!/bin/sh\n")
    assert build_compiler.has_compiler() is True
    # PyTorch calls c++ by itself, any other only if it is named.
    assert os.environ["CXX"] == (str(tmp_path / "path" / chosen) if chosen else "")


def test_a_compiler_that_is_named(build_compiler, tmp_path, monkeypatch):
    write_program(tmp_path / "path/ccache", "#!/bin/sh\n")
    monkeypatch.setenv("CXX", "ccache clang++ -O1")
    assert build_compiler.has_compiler() is True
    assert os.environ["CXX"] == "ccache clang++ -O1"
    monkeypatch.setenv("CXX", f"{tmp_path}/nowhere/g++ -O1")
    with pytest.raises(SystemExit, match=r"CXX must name a C\+\+ compiler that is there, got '.*nowhere"):
        build_compiler.has_compiler()
    for unreadable in (" ", 'g++ "'):
        monkeypatch.setenv("CXX", unreadable)
        with pytest.raises(SystemExit, match="CXX must name"):
            build_compiler.has_compiler()


def test_the_compiler_that_only_offers_to_install_one(build_compiler, monkeypatch):
    monkeypatch.setattr(build_compiler.sys, "platform", "darwin")
    monkeypatch.setattr(build_compiler.shutil, "which", lambda name: f"/usr/bin/{name}")
    for status, there in ((0, True), (2, False)):
        done = subprocess.CompletedProcess([], status)
        monkeypatch.setattr(build_compiler.subprocess, "run", lambda *_, done=done, **__: done)
        assert build_compiler.has_compiler() is there

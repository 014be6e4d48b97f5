# `make demo` and `make test` need only Python 3.10-3.13 and access to PyPI (or `make wheels` before).
PYTHON ?= python3
# A folder of wheels, filled by `make wheels`. If it contains all pinned versions, `make setup` needs no network.
WHEELS ?= $(HOME)/.cache/tf_packnet/wheels
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP_INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: help setup wheels demo test test-slow bench results docs build-file flag-reference lint mutants lock clean

help:
	@echo "make demo       learn five tasks on the embedded digits and print the results (two to three minutes, with the installation)"
	@echo "make lint       ruff and mypy"
	@echo "make test       lint and pytest"
	@echo "make test-slow  the tests that take minutes: the paper's MNIST setting at full length"
	@echo "make bench      the time of training against that of its matrix products: twenty minutes or more, on an otherwise idle machine"
	@echo "make results    repeat the experiments of docs/results in out/results: hours; can be stopped and continued"
	@echo "make docs       the guides and the API reference as a site, into out/docs/index.html"
	@echo "make setup      only make .venv with the pinned dependencies"
	@echo "make wheels     download the pinned dependencies, so that make setup works without a network"
	@echo "make build-file  write BUILD and the diagram of docs/architecture.md from the imports"
	@echo "make flag-reference  write flags/REFERENCE.md from the declarations of the flags"
	@echo "make mutants    mutation testing: hours; of one module with MODULE=tf_packnet/pruning/shares.py: minutes; SAMPLE=20 takes 20 mutants per module"
	@echo "make lock       pin the newest dependencies in requirements.txt"
	@echo "make clean      remove .venv and out/"

setup: $(READY)

$(READY): requirements.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 10) <= v <= (3, 13) else f"Python 3.10 to 3.13 is needed, {v[0]}.{v[1]} found: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@if [ -d "$(WHEELS)" ] && $(PIP_INSTALL) --no-index --find-links "$(WHEELS)" --requirement requirements.txt; \
	then echo "installed from $(WHEELS)"; \
	else echo "installing from PyPI"; $(PIP_INSTALL) --retries 10 --requirement requirements.txt; fi
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(READY)

wheels: $(READY)
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$(WHEELS)" --requirement requirements.txt

demo: $(READY)
	$(VENV)/bin/tf-packnet run --flagfile=digits --output_dir=out/digits

build-file: $(READY)
	$(RUN) -m tests.architecture

flag-reference: $(READY)
	TF_PACKNET_LAZY=1 $(RUN) -m tf_packnet.command_line.reference > flags/REFERENCE.md

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Two processes: tracing, which takes most of the time, uses one thread.
test: lint
	$(RUN) -m pytest -m "not slow" --numprocesses=2 --dist=worksteal

bench: $(READY)
	$(RUN) -m launch.bench

# The commands of docs/results; all share one store of stages.
MNIST := $(VENV)/bin/tf-packnet experiment --flagfile=mnist --stages_dir=out/results/stages
results: $(READY)
	$(MNIST) --experiment=figure1 --seeds=3 --output_dir=out/results/mnist-figure1
	$(MNIST) --experiment=figure2 --seeds=3 --sweep=prune_rounds=1,2,4,8,24,72 --output_dir=out/results/mnist-figure2
	$(MNIST) --experiment=table1 --seeds=2 --evaluations=6 --output_dir=out/results/mnist-table1
	$(MNIST) --experiment=figure3 --seeds=2 --evaluations=6 --output_dir=out/results/mnist-figure3
	$(MNIST) --experiment=sweep --seeds=3 --sweep=freed_weights=zero,keep,reinit --final_prune=0.995 \
	  --output_dir=out/results/mnist-freed_weights
	$(MNIST) --experiment=sweep --seeds=5,6,7,8,9 --sweep=prune_rounds=72,24,1,auto --final_prune=0.995 \
	  --output_dir=out/results/mnist-prune_rounds_auto
	$(MNIST) --experiment=sweep --seeds=5,6,7,8,9 --sweep=final_prune=0.99 --sweep=prune_rounds=24,auto \
	  --output_dir=out/results/mnist-prune_rounds_auto_0.99
	$(VENV)/bin/tf-packnet experiment --flagfile=digits --experiment=sweep --seeds=5,6,7,8,9 \
	  --sweep=prune_rounds=30,1,auto --final_prune=0.95 --output_dir=out/results/digits-prune_rounds_auto
	$(MNIST) --experiment=sweep --seeds=2 --sweep=head=per_task,shared --sweep=bias_policy=first_task,per_task \
	  --final_prune=0.995 --output_dir=out/results/mnist-heads_biases
	$(VENV)/bin/tf-packnet experiment --flagfile=cifar10 --stages_dir=out/results/stages --experiment=figure2 \
	  --sweep=final_prune=0.8 --sweep=prune_rounds=1,2,3,6 --seeds=4 --fleet=off \
	  --output_dir=out/results/cifar10-figure2
	$(VENV)/bin/tf-packnet experiment --flagfile=cifar10 --stages_dir=out/results/stages --experiment=sweep \
	  --sweep=prune_scope=layer,global --seeds=1 --precision=mixed_bfloat16 --workers=1 --threads=2 \
	  --output_dir=out/results/cifar10-prune_scope

# Guides and API reference; strict, see mkdocs.yml.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

test-slow: $(READY)
	$(RUN) -m pytest -m slow

mutants: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check 'cosmic-ray>=8.4,<9'
	$(RUN) -m tests.mutants $(MODULE) $(if $(TESTS),--tests="$(TESTS)") $(if $(SAMPLE),--sample=$(SAMPLE))

lock: $(READY)
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip compile --universal --python-version 3.10 --extra experiments --extra hub --extra ray --extra tables --extra test --extra docs --upgrade \
	  --no-header pyproject.toml -o requirements.txt

clean:
	rm -rf $(VENV) out

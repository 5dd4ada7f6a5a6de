# The project's commands: from nothing, each needs only Python 3.11 and make.
PYTHON ?= python3.11
SEED ?= 1
QUERY ?= ( 12 + 7 ) * 6 - -3
BIN := .venv/bin
INSTALLED := .venv/.installed

# torch's default of one thread a core spin-waits on shared cores and takes ten times as long.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test reliability check format docs lab lab-rl

demo: $(INSTALLED)  ## install everything into .venv and run the main job on the lab pool
	$(BIN)/r2graph run "$(QUERY)"

test: $(INSTALLED)  ## the test suite; `make test ARGS="-m slow"` runs what is deselected by default
	$(BIN)/pytest $(ARGS)

reliability: $(INSTALLED)  ## what is promised of failures, money and attacks, in full; a table of figures
	$(BIN)/pytest tests/reliability tests/security -m "not gpu and not vllm" $(ARGS)

check: $(INSTALLED)  ## what CI runs: format, lint, types, and the tests (import layers among them)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(MAKE) test

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED)  ## the documentation as a site, in site/
	$(BIN)/zensical build --strict

lab: $(INSTALLED)  ## train the lab's nine models and its router from nothing; stops and resumes
	$(BIN)/python -m training.lab

lab-rl: $(INSTALLED)  ## reinforcement learning of the lab's router, one seed; stops and resumes
	$(BIN)/python -m training.alternate --config training/configs/lab.yaml \
	    --router lab-sft --out runs/rl/seed-$(SEED) --seed $(SEED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv: about 2 GB and a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[all]"
	@touch $@

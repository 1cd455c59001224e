# make run    set everything up and run the main job: virtfn run, on the built-in lab
# make test   set everything up and run the tests
# make long   tests with guests that take minutes more: systemd, libvirt and DPDK on a host's card, every recipe
# make check  format, lint, types, imports, generated documents fresh, line budget
# make bench  data-plane rates; make docs: write the generated reference anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What calls kernels, and is run with their checked build as well.
KERNEL_TESTS := $(addprefix tests/unit/,devices drivers iomodels iovm kernels machine vmm)

.PHONY: run test long check bench docs clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/virtfn run

test: $(VENV)/.installed-dev
	tools/judges.sh
	$(BIN)/python -c 'from virtfn.kernels import warm; warm.load()'
	$(BIN)/pytest -n 2 -m "not slow and not guest"
	$(BIN)/pytest -n 2 --dist loadgroup -m "(slow or guest) and not alone and not long"
	$(BIN)/pytest -m "alone and not long"
	VIRTFN_CHECKED=1 $(BIN)/python -c 'from virtfn.kernels import warm; warm.load()'
	VIRTFN_CHECKED=1 $(BIN)/pytest -n 2 -m "not guest and not slow" $(KERNEL_TESTS)
	VIRTFN_CHECKED=1 $(BIN)/pytest -n 2 -m "not guest" tests/property tests/conformance tests/fuzz

long: $(VENV)/.installed-dev
	$(BIN)/pytest -m long

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/gen_reference.py --check
	$(BIN)/python tools/check_fields.py
	$(BIN)/python tools/gen_schema.py --check
	$(BIN)/python tools/gen_openapi.py --check
	$(BIN)/python tools/draw_frame.py --check
	$(BIN)/python tools/draw_models.py --check
	$(BIN)/python tools/line_budget.py

bench: $(VENV)/.installed
	$(BIN)/virtfn bench

docs: $(VENV)/.installed
	$(BIN)/python tools/gen_reference.py
	$(BIN)/python tools/gen_schema.py
	$(BIN)/python tools/gen_openapi.py
	$(BIN)/python tools/draw_frame.py
	$(BIN)/python tools/draw_models.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "virtfn needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plots,web]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,plots,web]'
	touch $@ $(VENV)/.installed

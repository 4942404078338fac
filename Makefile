# Each target sets up .venv by itself (scripts/install.sh, which does nothing when it is up to date).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: install quickstart lint check test audit

# With it set, vLLM would compile its modules anew in every process and start three times slower.
unexport PYTHONDONTWRITEBYTECODE

install:
	scripts/install.sh

# The default run: a tiny model learns addition.
quickstart: install
	.venv/bin/asyncrl launch

# Before each commit: format, lint, types, the fast tests.
check: install lint
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -m "not system"

# Before each push: everything, with real vLLM and Ray.
test: install lint
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -m "not system"
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m system

lint: install
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python scripts/audit.py

# What PyPI knows of each pin. Needs the network, so no check runs it.
audit: install
	.venv/bin/uvx pip-audit -r constraints-cpu.txt --no-deps --disable-pip

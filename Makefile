# Everything happens in .venv, which the first command sets up and later ones reuse. Paths are relative, so the checkout
# may be in a folder whose name has spaces. Windows: see README.md for the pip commands.

# the first Python that is new enough
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# the index to install torch from, if not pip's own, and extra arguments for the command
TORCH_INDEX ?=
ARGS ?=

python = .venv/bin/python
pip = $(python) -m pip install --disable-pip-version-check
torch = $(shell sed -n '/^torch==/p' constraints.txt)
install = $(pip) --quiet -c constraints.txt -e
settings = setup.cfg pyproject.toml constraints.txt

.PHONY: help train test lint docs bench

help:
	@echo 'make train   set up .venv, download Shakespeare, and train on it; ARGS="-model gru" adds flags'
	@echo 'make test    set up .venv with the test packages, and run all tests; ARGS="-k resume" adds options'
	@echo 'make lint    check style and types'
	@echo 'make docs    build the site, in docs/_build/html'
	@echo 'make bench   measure the speed of charrnn on this machine; ARGS="training" chooses a part'
	@echo
	@echo 'Each needs only Python 3.11 or newer. On Linux, torch from PyPI comes with CUDA, several gigabytes. Without a GPU,'
	@echo 'add TORCH_INDEX=https://download.pytorch.org/whl/cpu to the first command.'

train: .venv/charrnn.stamp
	$(python) -m charrnn train $(ARGS)

test: .venv/test.stamp
	$(python) -m pytest $(ARGS)

lint: .venv/test.stamp
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: .venv/docs.stamp
	$(python) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: .venv/fast.stamp
	$(python) -m benchmarks $(ARGS)

# install torch first, at its exact version, whichever index it comes from
.venv/torch.stamp: constraints.txt
	@if [ -z '$(PYTHON)' ]; then echo 'make: Python 3.11 or newer is needed; name it with PYTHON=PATH' >&2; exit 1; fi
	@echo 'setting up .venv'
	'$(PYTHON)' -m venv .venv
	$(pip) $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') $(torch)
	@touch $@

.venv/charrnn.stamp: .venv/torch.stamp $(settings)
	$(install) .
	@touch $@

.venv/%.stamp: .venv/torch.stamp $(settings)
	$(install) '.[$*]'
	@touch $@

# `make book` and `make test` need only make, Python 3.11 or newer and its venv
# module (Debian: apt install make python3 python3-venv).
PYTHON ?= python3
# How pip is to find torch, for example on Linux without an NVIDIA GPU:
#   make book TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=
# Notebooks that run at the same time, one core and 1 GB each
JOBS ?= 2
# Tests at the same time: one more than two cores, since some only wait
WORKERS ?= 3
V := .venv
B := $(V)/bin
BUILD = $(B)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going
export JUPYTER_PREFER_ENV_PATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

book: $(V)/.stamp  ## run what is stale, compare with the published records, build the HTML
	$(B)/python -m safeedit notebooks --jobs $(JOBS)
	$(B)/python -m safeedit compare || echo "The records above differ from the published ones; the book shows the new ones."
	$(B)/python -m safeedit.sphinx.bundles zip
	$(BUILD)
	@echo "The book is in _build/html/index.html"

test: $(V)/.stamp  ## the tests, then the list of stale outputs (which fails nothing)
	$(B)/python -m pytest -q -n $(WORKERS) --dist worksteal
	@$(B)/python -m safeedit fresh || echo "'make book' renews what is listed above."

fresh: $(V)/.stamp  ## list stale committed outputs; fails when there are any
	@$(B)/python -m safeedit fresh

notebooks: $(V)/.stamp  ## run what is stale
	$(B)/python -m safeedit notebooks --jobs $(JOBS)

slides: $(V)/.stamp  ## slides from the notebooks, in _build/slides
	$(B)/python -m safeedit slides

student: $(V)/.stamp  ## notebooks without solutions, to hand out, as _build/student.zip
	rm -f _build/student.zip
	$(B)/python -m safeedit student _build/student.zip

zip: $(V)/.stamp  ## all notebooks with solutions in one file, linked from the book
	$(B)/python -m safeedit.sphinx.bundles zip
	$(BUILD)

pdf: $(V)/.stamp  ## the book as a PDF (needs Chromium), linked from the book
	$(B)/python -m safeedit.sphinx.bundles pdf
	$(BUILD)

links: $(V)/.stamp  ## ask other hosts whether the addresses in the book are there
	$(B)/jupyter-book build . --toc book/_toc.yml --builder linkcheck --keep-going

lint: $(V)/.stamp  ## ruff and mypy
	$(B)/pip install -q -e ".[dev]" -c constraints.txt
	$(B)/ruff check .
	$(B)/mypy

plain: $(V)/.stamp  ## build the book with Sphinx alone, without Jupyter Book
	rm -rf _build/plain && mkdir -p _build/plain
	$(B)/jupyter-book config sphinx . --toc $(CURDIR)/book/_toc.yml
	sed -E "s/'(jupyter_book|sphinx_comments|sphinx_jupyterbook_latex)', ?//g; /^(comments_config|use_jupyterbook_latex|use_multitoc_numbering)/d; s#'(book/(favicon|references))#'$(CURDIR)/\1#" conf.py > _build/plain/conf.py
	rm conf.py
	$(B)/sphinx-build -q -W -n --keep-going -c _build/plain . _build/plain/html

clean:  ## remove what was built, but neither the environment nor committed outputs
	rm -rf _build runs

# torch first and exact: a range, asked for before torch is there, would take
# the newest build on the index, on Linux with gigabytes of CUDA libraries.
$(V)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Next step: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python's venv module is missing. Next step on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(V)
	@echo "Installing about 1.8 GB into $(V), 2 to 5 minutes ..."
	$(B)/pip install -q "torch==2.13.0" $(TORCH_ARGS)
	$(B)/pip install -q -e ".[book,test]" -c constraints.txt
	touch $@

.PHONY: help book test fresh notebooks lint plain clean slides student zip pdf links

# One command walks the study; another proves it. Everything else is named by `make help`.

DATASET ?= phantom
BUDGET  ?= $(if $(filter phantom,$(DATASET)),quick,full)
SEED    ?= 0
RECIPES ?= $(if $(filter kermany,$(DATASET)),all,tiny-cnn-28 scratch-cnn mobilenetv2-frozen majority-class file-size mean-intensity)
# Kermany: the scores that stand in reports/ are read back and nothing is trained; RETRAIN=1 trains all anew.
RETRAIN ?=
PYTHON  ?= python3

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Notebooks run in notebooks/, so a relative folder is read from here.
export XRAYLIB_DATA := $(if $(XRAYLIB_DATA),$(abspath $(XRAYLIB_DATA)))
export XRAYLIB_WEIGHTS := $(if $(XRAYLIB_WEIGHTS),$(abspath $(XRAYLIB_WEIGHTS)))
export XRAYLIB_CACHE := $(if $(XRAYLIB_CACHE),$(abspath $(XRAYLIB_CACHE)))
export XRAYLIB_RUNS := $(if $(XRAYLIB_RUNS),$(abspath $(XRAYLIB_RUNS)))
export XRAYLIB_REPORTS := $(if $(XRAYLIB_REPORTS),$(abspath $(XRAYLIB_REPORTS)))
# Progress bars are for people.
export TQDM_DISABLE := 1
export TF_CPP_MIN_LOG_LEVEL := 3
export PYTHONUNBUFFERED := 1

# A conda user's active environment is used when it meets pyproject.toml; otherwise .venv, built from the lock.
CONDA_OK := $(if $(CONDA_PREFIX),$(shell $(CONDA_PREFIX)/bin/python -m xraylib.environment 2>/dev/null))
ifeq ($(CONDA_OK),True)
PY    := $(CONDA_PREFIX)/bin/python
SETUP :=
else
PY    := .venv/bin/python
SETUP := .venv/ready
endif

# A user's folder is reported under its name and a mark of its path, as `catalog.find` names it.
ifneq ($(findstring /,$(DATASET)),)
override DATASET := $(or $(realpath $(DATASET)),$(abspath $(DATASET)))
NAME := $(shell $(PYTHON) -c "import hashlib, sys; p = sys.argv[1]; print('folder-' + p.split('/')[-1] + '-' + hashlib.sha256(p.encode()).hexdigest()[:8])" "$(DATASET)")
else
NAME := $(DATASET)
endif

BUILD     := build/$(NAME)
REPORT    := $(or $(XRAYLIB_REPORTS),reports)
SOURCES   := $(wildcard xraylib/*.py xraylib/*/*.py xraylib/report/templates/*)
NOTEBOOKS := $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/0*.ipynb))
PAGES     := $(NOTEBOOKS:%=$(BUILD)/%.ipynb)

REUSE     := $(if $(RETRAIN),false,$(if $(filter kermany,$(DATASET)),true,false))

comma := ,
empty :=
space := $(empty) $(empty)
JSON_RECIPES := [$(subst $(space),$(comma),$(foreach r,$(RECIPES),"$(r)"))]
PARAMETERS = -p dataset "$(DATASET)" -p budget "$(BUDGET)" -p seed $(SEED) -p recipes '$(JSON_RECIPES)' \
             -p reuse $(REUSE)

.PHONY: help setup reproduce test lint notebooks report bench badges clean FORCE

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(SETUP)  ## build .venv from requirements.lock (done by the other targets when needed)

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is another. Mend: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

reproduce: $(REPORT)/index.html  ## run every notebook that changed and rebuild reports/ (DATASET=kermany for real data)
	@echo "open $(REPORT)/index.html"

$(REPORT)/index.html: $(PAGES) $(wildcard $(REPORT)/*/scores/*.csv)
	$(PY) -m xraylib report

ifeq ($(REUSE),true)
# All notebooks read the same committed scores, so two may run side by side, each on one thread.
MAKEFLAGS += -j2
export OMP_NUM_THREADS ?= 1
else
# A later notebook reads what an earlier one left: trained runs and their scores.
$(BUILD)/04_transfer_learning.ipynb: $(BUILD)/03_baseline_cnn.ipynb
$(BUILD)/06_evaluation.ipynb $(BUILD)/07_predict.ipynb: $(BUILD)/03_baseline_cnn.ipynb $(BUILD)/04_transfer_learning.ipynb
endif

$(BUILD)/%.ipynb: notebooks/%.ipynb $(SOURCES) $(BUILD)/parameters | $(SETUP)
	@echo "$*: running on $(DATASET)"
	@$(PY) -m xraylib execute $< $@ --page $(REPORT)/$(NAME)/notebooks/$*.html $(PARAMETERS)

# Other parameters, another study: this file changes only when they do.
$(BUILD)/parameters: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(PARAMETERS))' "$(XRAYLIB_DATA)" "$(REPORT)" | cmp -s - $@ || \
	  printf '%s\n' '$(subst ','\'',$(PARAMETERS))' "$(XRAYLIB_DATA)" "$(REPORT)" > $@

report: $(SETUP)  ## rebuild the leaderboards and reports/index.html from the committed scores alone
	$(PY) -m xraylib report

test: lint  ## lint, types, every notebook against its committed outputs, unit tests, one run end to end
	XRAYLIB_REPORTS=$(abspath build/nbval) $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 600 notebooks
	$(PY) -m pytest

lint: $(SETUP)  ## ruff (notebooks too) and the type checker
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

notebooks: $(SETUP)  ## run the notebooks on the phantom and keep their outputs, for committing
	for notebook in notebooks/0*.ipynb; do \
	  $(PY) -m jupyter nbconvert --to notebook --inplace --execute "$$notebook"; done

bench: $(SETUP)  ## measure speed and memory (benchmarks/)
	$(PY) benchmarks/run.py

badges:  ## write the repository's address into badges and clone commands: make badges REPO=owner/name
	@[[ "$(REPO)" == */* ]] || { echo "no address. Mend: make badges REPO=owner/name" >&2; exit 1; }
	@old=$$(sed -n 's|^Repository = "https://github.com/\(.*\)"|\1|p' pyproject.toml); \
	for file in pyproject.toml README.md CITATION.cff notebooks/*.ipynb; do \
	  sed "s|$$old|$(REPO)|g" "$$file" > "$$file.new" && mv "$$file.new" "$$file"; done

clean:  ## remove executed notebooks and caches; downloads, runs and reports stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis data/cache

# One command walks the experiment; another proves it. Everything else is named by `make help`.

DATASET ?= phantom
BUDGET  ?= $(if $(filter phantom,$(DATASET)),quick,full)
SEED    ?= 0
# Transfer learning on images of your own needs ImageNet weights, so it is left out unless they are on this machine.
TRANSFER := $(if $(filter phantom,$(DATASET))$(XRAYLIB_WEIGHTS),mobilenetv2-frozen)
RECIPES ?= $(if $(filter kermany,$(DATASET)),all,tiny-cnn-28 $(TRANSFER) majority-class file-size mean-intensity)
# Kermany: the committed runs are read back and nothing is trained. RETRAIN=1 trains all anew.
RETRAIN ?=
PYTHON  ?= python3
VENV    ?= .venv

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Folders that a user names may have spaces. Make would split them, so its functions for paths are not used here, no
# such folder is a target, and every recipe quotes them.
quote    = '$(subst ','\'',$(1))'
absolute = $(if $(filter /% ~%,$(firstword $(1))),$(1),$(CURDIR)/$(1))

# Notebooks run in notebooks/, so a relative folder is read from here.
PLACES := DATA WEIGHTS CACHE RUNS REPORTS
$(foreach place,$(PLACES),$(if $(XRAYLIB_$(place)),\
  $(eval override export XRAYLIB_$(place) := $$(call absolute,$$(XRAYLIB_$(place))))))
# Progress bars are for people.
export TQDM_DISABLE := 1
export TF_CPP_MIN_LOG_LEVEL := 3
# TensorFlow's convolutions map and free large buffers at every step. With these settings of glibc
# the buffers are kept, which saves half of the CPU time of `scratch-cnn`.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 2147483647
export PYTHONUNBUFFERED := 1

# The conda environment of environment.yml is used where it is active; otherwise a venv built from the locks.
ifeq ($(CONDA_DEFAULT_ENV),xraylib)
PY        := $(CONDA_PREFIX)/bin/python
SETUP     :=
SETUP_DEV :=
else
PY        := $(call absolute,$(VENV))/bin/python
SETUP     := environment
SETUP_DEV := environment-dev
endif
# As recipes write them.
HERE        := $(call quote,$(CURDIR))
ENVIRONMENT := $(call quote,$(call absolute,$(VENV)))
MARK        := $(ENVIRONMENT)/built-by
CALL_PYTHON := $(call quote,$(PYTHON))
CALL_PY     := $(call quote,$(PY))
PIP         := $(CALL_PY) -m pip --quiet --disable-pip-version-check

# A folder of your own is given by its path.
ifneq ($(findstring /,$(DATASET)),)
override DATASET := $(shell CDPATH= cd -- $(call quote,$(DATASET)) 2> /dev/null && pwd -P || printf %s $(call quote,$(call absolute,$(DATASET))))
endif

# The build folder of a path has the path's last name, made safe, and a checksum of the whole.
BUILD := build/$(shell \
  name=$$(basename -- $(call quote,$(DATASET)) | LC_ALL=C tr -c 'A-Za-z0-9._\n-' _); \
  if [[ "$$name" == $(call quote,$(DATASET)) && "$$name" != .* ]]; then echo "$$name"; \
  else echo "folder-$$name-$$(printf %s $(call quote,$(DATASET)) | cksum | cut -d ' ' -f 1)"; fi)
SOURCES   := $(wildcard xraylib/*.py xraylib/*/*.py xraylib/report/templates/*)
NOTEBOOKS := $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/0*.ipynb))
PAGES     := $(NOTEBOOKS:%=$(BUILD)/%.ipynb)
REUSE     := $(if $(RETRAIN),false,$(if $(filter kermany,$(DATASET)),true,false))
# The longest begin. Where runs are read back, 05 is left out: it measures the device and reads none.
# 09 is about Kermany's files alone.
LONGEST := $(if $(filter true,$(REUSE)),09 07 06 03 04 01 02 08,03 04 05 01 02 07 06 08)
PAGES := $(foreach first,$(LONGEST),$(filter $(BUILD)/$(first)%,$(PAGES)))

comma := ,
empty :=
space := $(empty) $(empty)
JSON_RECIPES := [$(subst $(space),$(comma),$(foreach r,$(RECIPES),"$(r)"))]
# What each notebook takes; an unknown parameter is refused.
PARAMETERS = -p dataset $(call quote,$(DATASET)) -p seed $(SEED)
TRAINING   = -p reuse $(REUSE) -p budget "$(BUDGET)" -p recipes '$(JSON_RECIPES)'

.PHONY: help setup setup-dev environment environment-dev venv reproduce report test check lint unit slow stored \
  notebooks flagship app fuzz prediction bench colab badges lock dist clean FORCE

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(SETUP)  ## build .venv from requirements.lock, for running (done by the other targets when needed)

setup-dev: $(SETUP_DEV)  ## add what requirements-dev.lock has for testing and development

# The environment has copies of the locks that it was built from. Where they differ it is built anew.
environment:
	@cmp -s requirements.lock $(ENVIRONMENT)/built-from.lock || $(MAKE) --no-print-directory venv

environment-dev: $(SETUP)
	@cmp -s requirements-dev.lock $(ENVIRONMENT)/built-from-dev.lock || { \
	  $(PIP) install --require-hashes -r requirements-dev.lock && \
	  cp requirements-dev.lock $(ENVIRONMENT)/built-from-dev.lock; }

# Only an empty folder, or a venv that this clone built and marked with its own path, is ever emptied.
venv:
	@$(CALL_PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.11 to 3.13 is needed, $(PYTHON) is another. Fix: make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@[[ ! -e $(ENVIRONMENT) || (-d $(ENVIRONMENT) && -z "$$(ls -A $(ENVIRONMENT))") ]] || \
	  [[ -f $(ENVIRONMENT)/pyvenv.cfg && "$$(cat $(MARK) 2> /dev/null)" == $(HERE) ]] || { \
	  printf '%s is not an environment of this clone, and is left alone. Fix: remove it, or name another with VENV=\n' \
	    $(ENVIRONMENT) >&2; exit 1; }
	$(CALL_PYTHON) -m venv --clear --without-pip $(ENVIRONMENT)
	@printf '%s\n' $(HERE) > $(MARK)
	$(CALL_PY) -m ensurepip --upgrade --default-pip > /dev/null
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation --no-deps -e .
	@cp requirements.lock $(ENVIRONMENT)/built-from.lock

reproduce: $(BUILD)/report  ## run every notebook that changed and write reports/<data set>/ (DATASET=kermany for real data)
	@echo "open $$(cat $<)"

$(BUILD)/report: $(PAGES) $(if $(filter kermany,$(DATASET)),$(BUILD)/runs)
	@$(CALL_PY) -m xraylib report $(call quote,$(DATASET)) > $@.new && mv $@.new $@

# The committed runs, by checksum. Other runs, another report.
$(BUILD)/runs: FORCE
	@mkdir -p $(@D)
	@find "$${XRAYLIB_REPORTS:-reports}/kermany/runs" -name run.json -exec cksum {} + 2> /dev/null | sort > $@.new || true
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# Notebooks that do not wait for each other run two at a time.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j2
endif
ifeq ($(REUSE),true)
# All of them read the same committed runs, each on one thread.
export OMP_NUM_THREADS ?= 1
# 07 shows tables of lung heights and radiologists' labels that 09 writes.
$(BUILD)/07_shift_and_trust.ipynb: | $(BUILD)/09_kermany_forensics.ipynb
else
# Two read the runs and tables that the others leave.
LAST := $(BUILD)/06_evaluation.ipynb $(BUILD)/07_shift_and_trust.ipynb
$(LAST): | $(filter-out $(LAST),$(PAGES))
endif

$(BUILD)/08% $(BUILD)/09%: private PARAMETERS = -p dataset $(call quote,$(DATASET))
# Otherwise these two would take those of the notebooks that wait for them.
$(BUILD)/08% $(BUILD)/09%: MORE =

$(BUILD)/03% $(BUILD)/04% $(BUILD)/06% $(BUILD)/07%: MORE = $(TRAINING)

$(BUILD)/%.ipynb: notebooks/%.ipynb $(SOURCES) $(BUILD)/parameters | $(SETUP)
	@echo "$*: running on "$(call quote,$(DATASET))
	@$(CALL_PY) -m xraylib run-notebook $< $@ --html $(PARAMETERS) $(MORE)

# Other parameters, another report: this file changes only when they do.
$(BUILD)/parameters: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' $(call quote,$(PARAMETERS) $(TRAINING)) "$${XRAYLIB_DATA-}" "$${XRAYLIB_REPORTS-}" > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

report: $(SETUP)  ## rebuild leaderboards and pages from the runs in reports/
	$(CALL_PY) -m xraylib report

test: check  ## everything: check, then what trains, then every notebook (what is stable in its outputs is compared)
	@$(MAKE) --no-print-directory slow
	@$(MAKE) --no-print-directory stored

check: lint  ## lint, types and unit tests
	@$(MAKE) --no-print-directory unit

lint: $(SETUP_DEV)  ## style and types
	$(CALL_PY) -m ruff check .
	$(CALL_PY) -m ruff format --check .
	$(CALL_PY) -m mypy

unit: $(SETUP_DEV)  ## the quick tests
	$(CALL_PY) -m pytest -m "not slow" -n 2 --dist worksteal

slow: $(SETUP_DEV)  ## the tests that train, start other processes or open a browser
	$(CALL_PY) -m pytest -m slow -n 2 --dist worksteal

# The last notebooks first: alone in an empty report, each has to make what it needs. 09 reads a copy of the committed
# report. What is computed from trained networks differs between processors in its digits, which tests/nbval.cfg leaves out.
STORED = XRAYLIB_DATA= XRAYLIB_REPORTS=$(HERE)/build/nbval $(CALL_PY) -m pytest --nbval-lax --nbval-current-env \
  --nbval-cell-timeout 900 --timeout 1000 -p no:cacheprovider -n 2 --dist loadscope
stored: $(SETUP_DEV)  ## run every notebook in an empty report and compare its stored output
	rm -rf build/nbval
	mkdir -p build/nbval
	cp -R reports/kermany build/nbval/kermany
	$(STORED) notebooks/09* notebooks/0[12]*
	$(STORED) --nbval-sanitize-with tests/nbval.cfg notebooks/08* notebooks/07* notebooks/06* notebooks/03* notebooks/0[45]*

notebooks: $(SETUP)  ## run the notebooks on the phantom and keep their outputs, for committing
	for notebook in notebooks/0*.ipynb; do \
	  $(CALL_PY) -m jupyter nbconvert --to notebook --inplace --execute \
	  --ExecutePreprocessor.store_widget_state=False "$$notebook"; done

flagship: $(SETUP)  ## train the model that comes with the package anew, from Kermany's data (hours; goes on where it stopped)
	$(CALL_PY) -m xraylib train flagship --dataset kermany --overwrite
	$(CALL_PY) -m xraylib export flagship

app: $(SETUP)  ## open the packaged model as a page in the browser (notebook 08; on this machine only)
	$(CALL_PY) -m xraylib.app

fuzz: $(SETUP_DEV)  ## give predict 10,000 damaged files
	XRAYLIB_FUZZ=10000 $(CALL_PY) -m pytest tests/test_predict.py -k damaged --timeout 1800

prediction: $(SETUP_DEV)  ## measure what predict answers, also of altered files, and costs (reports/prediction.json, .csv)
	$(CALL_PY) benchmarks/prediction.py

bench: $(SETUP_DEV)  ## measure speed and memory (benchmarks/)
	$(CALL_PY) benchmarks/run.py

colab:  ## rehearse each notebook's first cells with Colab's versions (needs Python 3.12: make colab PYTHON=python3.12)
	$(CALL_PYTHON) tests/colab.py $(CALL_PYTHON)

badges:  ## write the repository's address into badges and clone commands: make badges REPO=owner/name
	@[[ "$(REPO)" == */* ]] || { echo "no address. Fix: make badges REPO=owner/name" >&2; exit 1; }
	@old=$$(sed -n 's|^Repository = "https://github.com/\(.*\)"|\1|p' pyproject.toml); \
	for file in pyproject.toml README.md CITATION.cff reports/kermany/index.html notebooks/*.ipynb; do \
	  sed "s|$$old|$(REPO)|g" "$$file" > "$$file.new" && mv "$$file.new" "$$file"; done

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet
lock:  ## compile both locks from pyproject.toml with uv; versions that are pinned stay
	$(COMPILE) --extra cpu --extra jax --extra notebooks -o requirements.lock pyproject.toml > /dev/null
	$(COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml > /dev/null

dist: $(SETUP)  ## build the source archive and the wheel in build/dist
	rm -rf build/dist build/lib
	$(CALL_PY) -c 'from setuptools import build_meta; [build("build/dist") for build in (build_meta.build_sdist, build_meta.build_wheel)]'

clean:  ## remove executed notebooks and caches; downloads, runs, quarantine lists and reports stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis data/cache

# One command walks the experiment; another proves it. Everything else is named by `make help`.

DATASET ?= phantom
BUDGET  ?= $(if $(filter phantom,$(DATASET)),quick,full)
SEED    ?= 0
RECIPES ?= $(if $(filter kermany,$(DATASET)),all,tiny-cnn-28 mobilenetv2-frozen majority-class file-size mean-intensity)
# Kermany: the committed runs are read back and nothing is trained; RETRAIN=1 trains all anew.
RETRAIN ?=
PYTHON  ?= python3
VENV    ?= .venv

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Notebooks run in notebooks/, so a relative folder is read from here.
PLACES := DATA WEIGHTS CACHE RUNS REPORTS
$(foreach place,$(PLACES),$(if $(XRAYLIB_$(place)),$(eval export XRAYLIB_$(place) := $(abspath $(XRAYLIB_$(place))))))
# Progress bars are for people.
export TQDM_DISABLE := 1
export TF_CPP_MIN_LOG_LEVEL := 3
export PYTHONUNBUFFERED := 1

# The conda environment of environment.yml is used where it is active; otherwise a venv built from the lock.
ifeq ($(CONDA_DEFAULT_ENV),xraylib)
PY    := $(CONDA_PREFIX)/bin/python
SETUP :=
else
PY    := $(abspath $(VENV))/bin/python
SETUP := $(VENV)/ready
endif

# A folder of your own is given by its path.
ifneq ($(findstring /,$(DATASET)),)
override DATASET := $(or $(realpath $(DATASET)),$(abspath $(DATASET)))
endif

BUILD     := build/$(subst /,_,$(patsubst /%,%,$(DATASET)))
SOURCES   := $(wildcard xraylib/*.py xraylib/*/*.py xraylib/report/templates/*)
NOTEBOOKS := $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/0*.ipynb))
PAGES     := $(NOTEBOOKS:%=$(BUILD)/%.ipynb)
RUNS      := $(if $(filter kermany,$(DATASET)),$(wildcard $(or $(XRAYLIB_REPORTS),reports)/kermany/runs/*/*/run.json))
REUSE     := $(if $(RETRAIN),false,$(if $(filter kermany,$(DATASET)),true,false))
# The longest begin. Where runs are read back, 05 is left out: it measures the device and reads none.
LONGEST := $(if $(filter true,$(REUSE)),06 03 04 01 02 07,03 04 05 01 02 06 07)
PAGES := $(foreach first,$(LONGEST),$(filter $(BUILD)/$(first)%,$(PAGES)))

comma := ,
empty :=
space := $(empty) $(empty)
JSON_RECIPES := [$(subst $(space),$(comma),$(foreach r,$(RECIPES),"$(r)"))]
# What each notebook takes; an unknown parameter is refused.
PARAMETERS = -p dataset "$(DATASET)" -p seed $(SEED)
TRAINING   = -p reuse $(REUSE) -p budget "$(BUDGET)" -p recipes '$(JSON_RECIPES)'

.PHONY: help setup reproduce report test check lint notebooks flagship app fuzz prediction bench colab badges clean FORCE

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(SETUP)  ## build .venv from requirements.lock (done by the other targets when needed)

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is another. Fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

reproduce: $(BUILD)/report  ## run every notebook that changed and write reports/<data set>/ (DATASET=kermany for real data)
	@echo "open $$(cat $<)"

$(BUILD)/report: $(PAGES) $(RUNS)
	@$(PY) -m xraylib report "$(DATASET)" > $@.new && mv $@.new $@

# Notebooks that do not wait for each other run two at a time.
MAKEFLAGS += -j2
ifeq ($(REUSE),true)
# All of them read the same committed runs, each on one thread.
export OMP_NUM_THREADS ?= 1
else
# Two read the runs and tables that the others leave.
$(BUILD)/06_evaluation.ipynb $(BUILD)/07_predict.ipynb: | $(filter-out $(BUILD)/06% $(BUILD)/07%,$(PAGES))
endif

$(BUILD)/03% $(BUILD)/04% $(BUILD)/06% $(BUILD)/07%: MORE = $(TRAINING)

$(BUILD)/%.ipynb: notebooks/%.ipynb $(SOURCES) $(BUILD)/parameters | $(SETUP)
	@echo "$*: running on $(DATASET)"
	@$(PY) -m xraylib run-notebook $< $@ --html $(PARAMETERS) $(MORE)

# Other parameters, another report: this file changes only when they do.
$(BUILD)/parameters: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(PARAMETERS) $(TRAINING))' "$(XRAYLIB_DATA)" "$(XRAYLIB_REPORTS)" | cmp -s - $@ || \
	  printf '%s\n' '$(subst ','\'',$(PARAMETERS) $(TRAINING))' "$(XRAYLIB_DATA)" "$(XRAYLIB_REPORTS)" > $@

report: $(SETUP)  ## rebuild leaderboards and pages from the runs that stand in reports/
	$(PY) -m xraylib report

test: check  ## everything: check, then what trains, then every notebook (what is stable in its outputs is compared)
	$(PY) -m pytest -m slow -n 2 --dist worksteal
	rm -rf build/nbval
	# The last ones first: alone in an empty report, each has to make what it needs.
	XRAYLIB_REPORTS=$(abspath build/nbval) $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 900 --timeout 1000 \
	  -p no:cacheprovider -n 2 --dist loadscope notebooks/07* notebooks/06* notebooks/03* notebooks/0[1245]*

check: lint  ## lint, types and unit tests
	$(PY) -m pytest -m "not slow" -n 2 --dist worksteal

lint: $(SETUP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

notebooks: $(SETUP)  ## run the notebooks on the phantom and keep their outputs, for committing
	for notebook in notebooks/0*.ipynb; do \
	  $(PY) -m jupyter nbconvert --to notebook --inplace --execute \
	  --ExecutePreprocessor.store_widget_state=False "$$notebook"; done

flagship: $(SETUP)  ## train the model that comes with the package anew, from Kermany's data (hours; goes on where it stopped)
	$(PY) -m xraylib train flagship --dataset kermany --overwrite
	$(PY) -m xraylib ship flagship

app: $(SETUP)  ## open the shipped model as a page in the browser (notebook 07; on this machine only)
	cd notebooks && $(PY) -m voila 07_predict.ipynb

fuzz: $(SETUP)  ## give predict 10,000 damaged files
	XRAYLIB_FUZZ=10000 $(PY) -m pytest tests/test_predict.py -k damaged --timeout 1800

prediction: $(SETUP)  ## measure what predict answers and costs (reports/prediction.json)
	$(PY) benchmarks/prediction.py

bench: $(SETUP)  ## measure speed and memory (benchmarks/)
	$(PY) benchmarks/run.py

colab:  ## rehearse each notebook's first cells with Colab's versions (needs Python 3.12: make colab PYTHON=python3.12)
	$(PYTHON) tests/colab.py $(PYTHON)

badges:  ## write the repository's address into badges and clone commands: make badges REPO=owner/name
	@[[ "$(REPO)" == */* ]] || { echo "no address. Fix: make badges REPO=owner/name" >&2; exit 1; }
	@old=$$(sed -n 's|^Repository = "https://github.com/\(.*\)"|\1|p' pyproject.toml); \
	for file in pyproject.toml README.md CITATION.cff notebooks/*.ipynb; do \
	  sed "s|$$old|$(REPO)|g" "$$file" > "$$file.new" && mv "$$file.new" "$$file"; done

clean:  ## remove executed notebooks and caches; downloads, runs, quarantine lists and reports stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis data/cache

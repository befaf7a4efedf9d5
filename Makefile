# Each target makes its own environment in .venv, once; only Python >= 3.11 and make are needed.
# A CPU-only torch is smaller: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP_ARGS ?=
NAME ?= run_all
ARGS ?=
RUN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo compare-small test check clients mutants bench drill docs reference clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(INSTALLED) ## data, a small model trained, tuned and scored, in a few minutes on a CPU
	$(RUN)/hanlin demo $(ARGS)

compare-small: $(INSTALLED) ## six ways to tune the demo's model for the tones of phrases, in one table (after make demo)
	@test -d demo/pinyin/best || { echo "make: it compares ways to tune what the demo has trained: call make demo first" >&2; exit 1; }
	$(RUN)/hanlin compare examples/compare_demo.yaml --only 'tones/*/seed1'

# Each worker is a process that takes one file of tests after another, those whose tests fork first (tests/conftest.py).
WORKERS ?= 2
SHARED_OUT := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Images of containers set this one: then every process that a test starts compiles all of hanlin anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED) ## all tests, in two processes (ARGS="-k name" for some of them, in one)
ifeq ($(ARGS),)
	@$(RUN)/python -c 'import xdist' 2>/dev/null || \
		echo "make: pytest-xdist is missing, so one process runs all tests: $(RUN)/python -m pip install -c constraints.txt -e '.[dev]'"
	$(RUN)/python -m pytest $$($(RUN)/python -c 'import xdist' 2>/dev/null && echo "$(SHARED_OUT)")
else
	$(RUN)/python -m pytest $(ARGS)
endif

check: $(INSTALLED) ## style, types, imports
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN)/pyright
	$(RUN)/lint-imports

clients: $(INSTALLED) ## other programs that optional tests compare with, into .clients: OpenAI 1.x and 2.x, LiteLLM, lm-eval, TRL
	for one in "openai1 openai<2" "openai2 openai<3" "litellm litellm" "lm_eval lm-eval[api]"; do \
		$(RUN)/python -m pip install --quiet --upgrade --target .clients/$${one%% *} "$${one#* }" || exit 1; done
	$(RUN)/python -m pip install --quiet --upgrade --target .clients/openai_suite --no-deps pytest-asyncio
	$(RUN)/python -m pip download --quiet --no-deps --no-binary :all: --dest .clients openai
	tar --extract --gzip --directory .clients/openai_suite --file $$(ls -t .clients/openai-*.tar.gz | head -1)
	$(RUN)/python -m pip install --quiet --upgrade --target .clients/trl --no-deps "trl>=1.16" accelerate datasets multiprocess dill xxhash pandas fsspec httpx

mutants: $(INSTALLED) ## break one line after another; do the unit tests notice? (ARGS=step.py: some of them)
	$(RUN)/python tests/mutants.py $(ARGS)

bench: $(INSTALLED) ## all benchmarks, as ratios within one run, beside those that are kept; or one (NAME=step_cpm1 ARGS="--rounds 3")
	$(RUN)/python benchmarks/$(NAME).py $(ARGS)

drill: $(INSTALLED) ## kills, damage, hostile files, full disks, fuzzing, what `make test` leaves out: more than an hour (ARGS="--scale 0.1" for less)
	$(RUN)/python tests/drills/drill.py $(ARGS)
ifeq ($(ARGS),)
	$(RUN)/python -m pytest -m drill
	$(RUN)/python tests/drills/layouts.py --sample 200
	$(RUN)/python tests/accelerator/matrix.py
	HANLIN_SOAK_REQUESTS=10000 $(RUN)/python -m pytest -s tests/serve/test_soak.py
endif

docs: $(INSTALLED) ## links, commands and recipes that the docs name exist
	$(RUN)/python -m pytest tests/test_docs.py

reference: $(INSTALLED) ## docs/settings.md and docs/settings.zh-CN.md, from the comments above the settings
	$(RUN)/python -m hanlin.reference

site: $(INSTALLED) ## the docs as HTML in both languages, into site/ (ARGS="--repository URL" where files of the repository are shown)
	$(RUN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(RUN)/python tools/site/build.py $(ARGS)

clean: ## remove the environment
	rm -rf .venv

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed (or give PYTHON=/path/to/python3)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[demo,dev]'
	@touch $@

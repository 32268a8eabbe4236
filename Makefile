# The two commands: `make serve` and `make test`. Nothing else is needed first.
PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
VISION ?=
ARGS ?=
TESTS ?=
# What an installation is made of; the rest of it is read from src/. The kernels are compiled again when theirs has changed.
KERNELS := src/sglang/version.py $(wildcard csrc/*.* csrc/*/*.h csrc/python/*/*.py)
INSTALLED := pyproject.toml $(KERNELS)

# What `make test-models` runs, and `make test` does not.
MODEL_TESTS := tests/model $(wildcard tests/kernels/test_triton_*.py)

# An environment that does not work where it lies is out of date.
unusable = $(shell scripts/is_usable $1 || echo again)
.SECONDEXPANSION:

.PHONY: again serve test test-models test-page test-cluster test-attack test-newcomer test-sanitize check docs clean

# Ctrl-C is no error: the shell waits for the server's own end.
serve: .venv/installed $(if $(filter-out 0,$(VISION)),.venv/vision)
	@scripts/ensure_kernels .venv
	@trap : INT; .venv/bin/sglang serve --model-path "$(MODEL)" $(ARGS) || [ $$? -eq 130 ]

test: .venv-test/installed
	@scripts/check .venv-test/bin
	@scripts/test .venv-test/bin $(or $(TESTS),tests $(addprefix --ignore=,$(MODEL_TESTS)))

# Every family of models against transformers, in every kind of file; and the GPU's kernels, in Triton's interpreter.
test-models: .venv-test/installed
	@scripts/test .venv-test/bin $(MODEL_TESTS)

# The web page in a real browser, in its own environment.
test-page: .venv-page/installed
	@TEST_WORKERS=0 scripts/test .venv-page/bin -m "page and not slow" tests/page

# Several models and replicas, each in processes of its own; those on Ray in an environment of their own, one after the other.
test-cluster: .venv-test/installed .venv-cluster/installed
	@scripts/test .venv-test/bin -m "cluster and not slow" tests/cluster
	@TEST_WORKERS=0 scripts/test .venv-cluster/bin -m "cluster and not slow" tests/cluster/test_ray.py tests/cluster/test_ray_leases.py

# Hostile clients against real servers; first those for whom it matters how long others wait, one at a time.
test-attack: .venv-test/installed
	@TEST_WORKERS=0 scripts/test .venv-test/bin -m "attack and not slow" tests/attack
	@scripts/test .venv-test/bin -m "attack and not slow" --ignore tests/attack

# What README and the server print, pasted into a terminal by somebody who has nothing yet; VISION=1: with vision, too.
test-newcomer:
	@scripts/newcomer $(if $(filter-out 0,$(VISION)),--vision)

# The CPU kernels and their thread pool under the compiler's sanitizers: slow, see docs/kernels.md.
test-sanitize: .venv-test/installed
	@scripts/sanitize .venv-test/bin

.venv-page/installed: $(INSTALLED) $$(call unusable,.venv-page)
	@scripts/make_venv $(PYTHON) .venv-page
	@echo "Installing Chromium and what drives it ..."
	@scripts/install_chromium
	@. scripts/lock; .venv-page/bin/python -m pip install --quiet --disable-pip-version-check --editable ./csrc --editable ".[srt,vision,page]"
	@touch $@

.venv-cluster/installed: $(INSTALLED) $$(call unusable,.venv-cluster)
	@scripts/make_venv $(PYTHON) .venv-cluster
	@echo "Installing Ray, for tests of replicas ..."
	@. scripts/lock; .venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check --editable ./csrc --editable ".[srt,ray,cluster]"
	@touch $@

check: .venv-test/installed
	@scripts/check .venv-test/bin

# The site of the documents, in build/site. Once its tools are installed, it is built without a network.
docs: .venv-test/installed-docs
	@scripts/build_docs .venv-test/bin
	@echo "The site is in build/site: open build/site/index.html"

.venv-test/installed-docs: .venv-test/installed
	@.venv-test/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

.venv/installed: $(INSTALLED) $$(call unusable,.venv)
	@scripts/install_runtime $(PYTHON) $(if $(filter $(KERNELS) again,$?),kernels)

.venv/vision: .venv/installed
	@echo "Installing image processors ..."
	@. scripts/lock; .venv/bin/python scripts/pip_progress.py install --editable ".[srt,vision]"
	@touch $@

.venv-test/installed: $(INSTALLED) $$(call unusable,.venv-test)
	@scripts/make_venv $(PYTHON) .venv-test
	@echo "Installing the test environment; torch comes first, by name, so that nothing pulls in another build of it ..."
	@.venv-test/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@. scripts/lock; .venv-test/bin/python -m pip install --quiet --disable-pip-version-check --editable ./csrc --editable ".[srt,dev]"
	@touch $@

clean:
	rm -rf .venv .venv-test .venv-page .venv-cluster build csrc/build dist

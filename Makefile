# Two commands: `make demo` and `make test`. The others are their parts.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN     = $(BIN)/python -m

.PHONY: demo test lint types imports unit conformance conformance-table conformance-agree test-npu test-vllm test-verl test-trl test-slow clean

demo: $(VENV)/installed
	$(RUN) hal
	@printf '\n== The bundled model as it is ==\n'
	$(RUN) srdd --backend cpu-reference
	@printf '\n== The same with a simulated fault: one hidden unit in ten of layer 7 cannot hold small values ==\n'
	$(RUN) srdd --backend cpu-reference --inject dead_zone@7:sparsity=0.1; test $$? -eq 1

test: lint types imports unit conformance test-npu

lint: $(VENV)/installed-dev
	$(RUN) ruff check
	$(RUN) ruff format --check

types: $(VENV)/installed-dev
	$(RUN) mypy

imports: $(VENV)/installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile -m "not npu and not gpu and not slow and not engine"

# A minute on one thread; the operators' command, as CI runs it.
conformance: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) conformance run --backend cpu-reference --quick

SIMULATED = 'The npu here is the simulated one (simulated-npu.md): it shows that the code paths are right, not a 910B'"'"'s numbers.'

# The full run of the host and of the simulated npu, and docs/conformance.md from their files.
conformance-table: $(VENV)/installed-dev
	mkdir -p build
	OMP_NUM_THREADS=1 $(RUN) conformance run --backend cpu-reference --json build/cpu-reference.json
	OMP_NUM_THREADS=1 $(PYTHON) tests/npu/environment.py run python -m conformance run --backend npu --json build/npu.json; \
	    test $$? -le 1
	$(RUN) conformance table build/cpu-reference.json build/npu.json --markdown docs/conformance.md --note $(SIMULATED)

# Do the host and the simulated npu agree under every standard? After conformance-table; the strictest level names what
# wants many draws.
NPU_RUN = OMP_NUM_THREADS=1 $(PYTHON) tests/npu/environment.py run
conformance-agree: $(VENV)/installed-dev
	$(RUN) conformance compare build/cpu-reference.json build/npu.json --standard ascend-dual-l2 \
	    --recheck-list build/waiting.txt --quiet || test $$? -eq 1
	OMP_NUM_THREADS=1 $(RUN) conformance run --backend cpu-reference --cases @build/waiting.txt --seeds 1000 \
	    --quiet --json build/cpu-reference-recheck.json
	$(NPU_RUN) python -m conformance run --backend npu --cases @build/waiting.txt --seeds 1000 \
	    --quiet --json build/npu-recheck.json
	for standard in bound ulp ascend-single mixed-2026 ascend-dual-l0 ascend-dual-l1 ascend-dual-l2; do \
	    echo $$standard; $(RUN) conformance compare build/cpu-reference.json build/npu.json --standard $$standard \
	        --recheck build/cpu-reference-recheck.json --recheck build/npu-recheck.json --quiet || exit 1; \
	done

test-slow: $(VENV)/installed-dev
	$(RUN) pytest -m "slow and not npu and not gpu and not engine"

# Apart, in an environment of its own: torch_npu without CANN breaks `import torch`.
test-npu:
	OMP_NUM_THREADS=1 $(PYTHON) tests/npu/environment.py test

# Each with the real engine, in an environment of its own: several GB, minutes, and no part of `make test`.
test-vllm test-verl test-trl:
	$(PYTHON) tests/engines/environment.py $(@:test-%=%) test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) .venv-npu .venv-vllm .venv-verl .venv-trl build *.egg-info

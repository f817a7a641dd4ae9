# Two commands matter: `make demo` and `make test`. Both set up what is missing first (scripts/setup).
MAKEFLAGS += --no-builtin-rules
PY := .venv/bin/python
C_SOURCES := $(foreach room,native store,$(wildcard $(room)/*.h $(room)/build_*.py $(foreach end,c cc h inc S,$(room)/src/*.$(end))))
SOURCES := $(C_SOURCES) pyproject.toml setup.py scripts/setup

.PHONY: setup test demo lint unit native e2e bench soak clean

# Compiled ahead: where Python may not write beside the sources, each command would compile all of them (0.1 s).
setup: .venv/.ready
	@$(PY) -m compileall -q bpf ckpt native store

.venv/.ready: $(SOURCES)
	scripts/setup
	@touch $@

test: setup lint
	$(PY) -m pytest tests

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache

demo: setup
	$(PY) scripts/demo.py

bench: setup
	$(PY) -m tests.bench

soak: setup
	CKPT_SOAK=1 $(PY) -m pytest -s tests/native tests/faults tests/fuzz tests/e2e/test_rollback.py tests/e2e/test_calls.py tests/e2e/test_keeper.py

clean:
	rm -rf build *.egg-info .venv/.ready native/_native.c native/*.so store/_pages.c store/*.so

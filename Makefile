# Two commands matter: `make demo` and `make test`. Both set up what is missing first (scripts/setup).
MAKEFLAGS += --no-builtin-rules
PY := .venv/bin/python
WORKERS ?= 2
PYTEST := $(PY) -m tests.harness.adopt $(PY) -m pytest
C_SOURCES := $(foreach room,native store,$(wildcard $(room)/*.h $(room)/build_*.py $(foreach end,c cc h inc S,$(room)/src/*.$(end))))
SOURCES := $(C_SOURCES) pyproject.toml setup.py scripts/setup

SOAKED := tests/native tests/faults tests/fuzz $(patsubst %,tests/e2e/test_%.py,cycles restore_postgres rollback calls keeper)

.PHONY: setup test demo lint unit native e2e bench soak clean

# Compiled ahead: where Python may not write beside the sources, each command would compile all of them (0.1 s).
setup: .venv/.ready
	@$(PY) -m compileall -q bpf ckpt native store

.venv/.ready: $(SOURCES)
	scripts/setup
	@touch $@

# Several at a time, as most of a test is waiting; what judges moments comes after them, alone.
test: setup lint
	$(PYTEST) -n $(WORKERS) --dist loadfile -m 'not alone' tests; many=$$?; \
	$(PYTEST) -m alone tests && exit $$many

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
	CKPT_SOAK=1 $(PYTEST) -s -n $(WORKERS) --dist worksteal -m 'not alone' $(SOAKED); many=$$?; \
	CKPT_SOAK=1 $(PYTEST) -s -m alone $(SOAKED) && exit $$many

clean:
	rm -rf build *.egg-info .venv/.ready native/_native.c native/*.so store/_pages.c store/*.so

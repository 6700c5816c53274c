PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all chaos gpu-check lint docs benchmark clean

demo: $(VENV)/installed
	$(BIN)/vidray demo

test: $(VENV)/installed lint
	-sh scripts/azurite.sh install # tests of Azure skip without
	$(BIN)/python -m pytest -n 2 --dist loadfile # half of many tests is waiting for processes

test-all: $(VENV)/installed lint
	-sh scripts/azurite.sh install
	$(BIN)/python -m pytest -m "" -n 2 --dist loadfile

# Kills, outages, lost nodes, full disks, hostile files: docs/reliability.md.
CHAOS := $(addprefix tests/,test_lost_ray.py storage/test_outages.py sandbox/test_confinement.py sandbox/test_hostile.py \
	$(addprefix scoring/,test_chaos.py test_kills.py test_outages.py test_full_disk.py test_late_nodes.py \
	test_three_nodes.py) \
	$(addprefix training/,test_trainer.py test_train_outages.py test_two_trainers.py test_lost_node.py))

chaos: $(VENV)/installed
	$(BIN)/python -m pytest -m "" -n 2 --dist loadfile $(CHAOS)

# On a machine with a GPU, in under ten minutes.
gpu-check: $(VENV)/installed
	PYTHON=$(BIN)/python sh scripts/gpu_check.sh

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONHASHSEED=0 $(BIN)/mypy # inference follows set order: the same verdict everywhere

docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/installed
	$(BIN)/python benchmarks/score.py

# Made anew when what is installed changes; the marker is written last, so a set-up that broke off is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build

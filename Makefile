# Everything runs in a virtual environment of its own, .venv; Python >= 3.10 and make are all that must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTOS = $(shell $(BIN)/python -c "import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / 'data')")

.PHONY: demo test evidence fuzz soak lint docs clean

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/sam-blvit segment $(PHOTOS)/coffee.png --box 160,15,420,300 --show-routing --output demo
	$(BIN)/sam-blvit segment $(PHOTOS)/rocket.jpg --box 305,105,345,415 --output demo
	$(BIN)/sam-blvit segment $(PHOTOS)/motorcycle_left.png --box 80,70,690,470 --output demo
	$(BIN)/sam-blvit segment $(PHOTOS)/chelsea.png --point 230,150 --output demo
	$(BIN)/sam-blvit everything $(PHOTOS)/motorcycle_left.png --points-per-side 16 --output demo
	@echo "Look at demo/*_overlay.png, demo/motorcycle_left_everything.png and demo/coffee_routing.png"

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

evidence: $(VENV)/installed
	$(if $(DATA),,$(error DATA is not given; name the directory that has real_train and real_eval: make evidence DATA=DIR))
	$(BIN)/python -m studies.evidence --data $(DATA) --output runs/evidence_reduced
	@echo "The tables are in runs/evidence_reduced/evidence.md; docs/evidence.md says how to make more of them"

fuzz: $(VENV)/installed-dev
	CASES=$(or $(CASES),5000) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m property

soak: $(VENV)/installed-dev
	KILLS=30 $(BIN)/python -m pytest -s tests/commands/test_finetune.py -k random_moments

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo site

# make install   create .venv and install the project with its test tools
# make demo      train a small model on phantoms, then generate four volumes
# make test      lint, format check and all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: install demo test

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[test]"
	touch $@

$(DEMO)/phantoms/variants.csv: | install
	$(BIN)/python sample_data/phantom.py --output $(DEMO)/phantoms --num 64 --image_size 64 --image_depth 16

DEMO_RUN := --name demo --results_dir $(DEMO)/results --models_dir $(DEMO)/models

demo: install $(DEMO)/phantoms/variants.csv
	$(BIN)/python stylegan2_pytorch.py --data $(DEMO)/phantoms $(DEMO_RUN) \
		--image_size 64 --image_depth 16 --network_capacity 4 --fmap_max 64 \
		--batch_size 4 --gradient_accumulate_every 1 --learning_rate 1e-3 \
		--num_train_steps 300 --save_every 100 --num_image_tiles 4
	$(BIN)/python stylegan2_pytorch.py $(DEMO_RUN) --generate --num_generate 4 --use_average False
	@echo "Previews of the training: $(DEMO)/results/demo/previews"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

# make install   create .venv and install the project with its test tools
# make demo      train a small model on phantoms, generate 128 volumes, and evaluate them
# make test      lint, format check and all tests
# make gpu       what only a GPU can show: tests and measurements of ten minutes, in gpu/report.md
# make faults    kills, full disks, damaged files and odd command lines, for about an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: install demo test gpu faults

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[test]"
	touch $@

$(DEMO)/phantoms/variants.csv: | install
	$(BIN)/python sample_data/phantom.py --output $(DEMO)/phantoms --num 256 --image_size 32 --image_depth 8

# Small enough for two CPU cores: carotids, basilar artery and cistern appear, thin vessels need some thousand steps.
DEMO_RUN := --name demo --results_dir $(DEMO)/results --models_dir $(DEMO)/models
DEMO_MODEL := --image_size 32 --image_depth 8 --network_capacity 4 --fmap_max 64
DEMO_TRAINING := --recipe robust --batch_size 8 --gradient_accumulate_every 1 --num_train_steps 700 \
	--save_every 350 --num_image_tiles 4

demo: install $(DEMO)/phantoms/variants.csv
	$(BIN)/python stylegan2_pytorch.py --data $(DEMO)/phantoms $(DEMO_RUN) $(DEMO_MODEL) $(DEMO_TRAINING)
	$(BIN)/python stylegan2_pytorch.py $(DEMO_RUN) --generate --num_generate 128
	$(BIN)/python MedicalNet/evaluation.py --real $(DEMO)/phantoms --generated $(DEMO)/results/demo/generated-model_2 \
		--embedding random --metrics md,ms_ssim,anatomy --output $(DEMO)/evaluation
	@echo "Pictures of the training are in $(DEMO)/results/demo/previews"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadgroup

gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/gpu.py

faults: install
	$(BIN)/python -m tests.faults

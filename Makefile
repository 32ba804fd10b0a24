# make install   create .venv and install the project with its test tools
# make demo      volumes of the model that comes along, then train a small one; both are evaluated
#                make demo NAME=long STEPS=3000 trains another one, longer
# make test      lint, format check and all tests
# make gpu       what only a GPU can show: tests and measurements of ten minutes, in gpu/report.md
# make faults    kills, full disks, damaged files and odd command lines, for about an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# Threads that wait give their core away: on a machine that others use, steps are ten times as fast.
export OMP_WAIT_POLICY ?= PASSIVE
NAME ?= demo
STEPS ?= 600

.PHONY: install demo test gpu faults

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[test]"
	touch $@

# Volumes of the model that comes along, against phantoms that it has not seen; then a model of one's own, small
# enough for two CPU cores: cistern and bright arcs of arteries appear, outlines need some thousand steps.
GENERATE := $(BIN)/python CoW_generator.py --save_directory $(DEMO)/shipped
PHANTOM := $(BIN)/python sample_data/phantom.py
EVALUATE := $(BIN)/python MedicalNet/evaluation.py --embedding random --metrics md,ms_ssim,anatomy,copies
RUN := --name $(NAME) --results_dir $(DEMO)/results --models_dir $(DEMO)/models
MODEL := --image_size 32 --image_depth 8 --network_capacity 4 --fmap_max 64
TRAINING := --recipe robust --batch_size 8 --gradient_accumulate_every 1 --num_train_steps $(STEPS) \
	--save_every 300 --num_image_tiles 4

demo: install
	$(GENERATE) --num_generate 64 --seed 0
	$(GENERATE) --mode interpolation --seeds 3,8,21 --steps 24
	$(GENERATE) --mode stochastic_variation --num_generate 1 --num_stochastic_variation 12
	@echo "Volumes, pictures and GIFs of the model that comes along are in $(DEMO)/shipped"
	test -e $(DEMO)/unseen/variants.csv || $(PHANTOM) --output $(DEMO)/unseen --num 128 --seed 1000 --image_size 64 \
		--image_depth 16
	$(EVALUATE) --real $(DEMO)/unseen --generated $(DEMO)/shipped/normal --output $(DEMO)/evaluation-shipped
	test -e $(DEMO)/phantoms/variants.csv || $(PHANTOM) --output $(DEMO)/phantoms --num 256 --image_size 32 \
		--image_depth 8
	$(BIN)/python stylegan2_pytorch.py --data $(DEMO)/phantoms $(RUN) $(MODEL) $(TRAINING)
	$(BIN)/python stylegan2_pytorch.py $(RUN) --generate --num_generate 128 --output $(DEMO)/volumes-$(NAME)-$(STEPS)
	$(EVALUATE) --real $(DEMO)/phantoms --generated $(DEMO)/volumes-$(NAME)-$(STEPS) \
		--output $(DEMO)/evaluation-$(NAME)-$(STEPS)
	$(BIN)/python tests/benchmarks/demo.py --shipped $(DEMO)/evaluation-shipped \
		--trained $(DEMO)/evaluation-$(NAME)-$(STEPS)
	@echo "Pictures of the training are in $(DEMO)/results/$(NAME)/previews"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/gpu.py

faults: install
	$(BIN)/python -m tests.faults

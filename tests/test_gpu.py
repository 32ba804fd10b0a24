"""What only a GPU can show; skipped where there is none. `make gpu` runs it, with measurements."""

import itertools

from volumetric import arrangement, layers, memory, parallel

import pytest
import torch

import stylegan2_pytorch as sg
from tests.benchmarks.launches import NoLog, endless
from tests.benchmarks.step import PHASES, FixedTrainer
from tests.conftest import random_array, run_script, write_volume
from tests.test_arrangement import everything
from tests.test_networks import compare_golden
from tests.test_training import assert_same_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = {"image_size": 32, "image_depth": 16, "network_capacity": 4, "fmap_max": 64}
RECIPES = [{"recipe": "published", "pl_batch_shrink": 1}, {"recipe": "robust", "penalty_every": 2}]


def relative(found, expected):
    """Largest difference over the largest expected value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-3))


@pytest.fixture(autouse=True)
def float32_products():
    """TF32 is off in every test."""
    with parallel.tf32(False):
        yield


@pytest.mark.parametrize("name", ["32x32x32", "64x64x32"])
def test_golden_values(name):
    compare_golden(name, 1e-3, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("factors", [None, (2, 2, 2), (1, 2, 2)])
def test_linear_maps_are_those_of_the_cpu(factors, dtype):
    x = torch.randn(2, 8, 8, 16, 16)
    layer = sg.Blur() if factors is None else layers.Upsampling(factors)
    found = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        moved = x.to(device, kind).requires_grad_()
        y = layer(moved)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), moved)
        found.append((y, gradient))
    for cpu, gpu in zip(*found, strict=True):
        assert relative(gpu, cpu) < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("phase", PHASES)
def test_gradients_are_those_of_the_cpu(phase):
    regularized, generator = PHASES[phase]
    gradients = []
    cpu = FixedTrainer(SETTINGS, 2)
    gpu = FixedTrainer(SETTINGS, 2, "cuda")
    gpu.GAN.load_state_dict(cpu.GAN.state_dict())
    y = torch.randn(cpu.real.shape)
    for trainer in (cpu, gpu):
        draw = trainer.draw
        trainer.draw = lambda f, s, g, t=trainer, d=draw: (
            y.to(t.device) if s == (1, *t.config.shape) else d(f, s, g)
        )
        accumulate = trainer.accumulate_generator if generator else trainer.accumulate_discriminator
        accumulate(regularized, 1)
        network = trainer.GAN.G if generator else trainer.GAN.D
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, expected in gradients[0].items():
        assert relative(gradients[1][name], expected) < 1e-2, name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["recipe"])
@pytest.mark.parametrize("amp", ["float16", "bfloat16"])
def test_ten_steps_are_finite(make_config, recipe, amp):
    settings = {**recipe, "aug_types": ("translation", "cutout", "contrast"), "aug_prob": 1.0}
    config = make_config(device="cuda", amp_dtype=amp, num_train_steps=10, cache="gpu", **settings)
    trainer = sg.train_from_folder(config)
    assert trainer.step == 10
    assert all(p.isfinite().all() for p in trainer.GAN.parameters())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["recipe"])
def test_deterministic_runs_resume_bit_for_bit(make_config, recipe):
    common = {**recipe, "device": "cuda", "deterministic": True, "save_every": 3, "final_rate": 1.0}
    parallel.prepare_process("cuda", deterministic=True)
    try:
        sg.train_from_folder(make_config(name="whole", num_train_steps=6, **common))
        for steps in (3, 6):
            sg.train_from_folder(make_config(name="parts", num_train_steps=steps, **common))
    finally:
        parallel.prepare_process("cuda")
    folder = make_config().models.parent
    assert_same_state(*(sg.read_checkpoint(folder / name / "model_2.pt") for name in ("whole", "parts")))


def test_a_step_waits_for_nothing(make_config):
    """After the first steps, until the losses are read."""
    config = make_config(device="cuda", cache="gpu", num_train_steps=100, aug_prob=1.0)
    audit = sg.dataset.open_data(config.data, config.array_shape, "gpu", None, parallel.Group())
    audit.move("gpu", torch.device("cuda"))
    trainer = sg.Trainer(config, audit)

    for _ in range(3):
        trainer.train_step(NoLog())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step(NoLog())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_rehearsal_finds_the_peak_of_a_late_step(make_config):
    config = make_config(device="cuda", amp_dtype="float16", **SETTINGS, num_image_tiles=1)
    trainer = sg.Trainer(config)
    predicted = max(memory.measure_peak_memory(trainer).values())
    volumes = torch.zeros(config.batch_size, 1, *config.shape)
    trainer.loader = iter(lambda: (volumes, torch.zeros(len(volumes), dtype=torch.int64)), None)
    trainer.pl_mean = torch.zeros((), dtype=torch.float64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for trainer.step in (5023, 5024):
        trainer.discriminator_step()
        trainer.generator_step()
        trainer.scaler.update()
    assert torch.cuda.max_memory_allocated() <= 1.05 * predicted


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["recipe"])
def test_the_fastest_way_is_chosen_and_taken_again(make_config, recipe):
    """Of all that fit, replayed and not; nothing else is another afterwards, and steps run that way."""
    settings = {**SETTINGS, **recipe, "gradient_accumulate_every": 2, "num_train_steps": 100000}
    config = make_config(device="cuda", amp_dtype="float16", num_image_tiles=1, **settings)
    trainer = sg.Trainer(config)
    before = [*everything(trainer), torch.cuda.get_rng_state()]
    choice = arrangement.choose(trainer)
    torch.testing.assert_close(before, [*everything(trainer), torch.cuda.get_rng_state()], rtol=0, atol=0)
    ways, fastest = choice.times.keys(), min(choice.times.values())
    assert {way.at_once for way in ways} == {1, 2} and {way.replayed for way in ways} == {False, True}
    assert choice.times[choice.arrangement] <= arrangement.TIE * fastest
    assert sum(choice.peaks.values()) > 0 and len(choice.lines()) == 1
    trainer.loader = endless(trainer, torch.rand)
    for _ in range(6):
        trainer.train_step(NoLog())
    assert all(p.isfinite().all() for p in trainer.GAN.parameters())
    again = arrangement.choose(sg.Trainer(config), trainer.arrangement)
    assert again.arrangement == choice.arrangement and not again.times


@pytest.mark.parametrize("fp16", [False, True])
def test_replayed_gradients_are_those_of_ordinary_steps(make_config, fp16):
    settings = {"recipe": "robust", "device": "cuda", "cache": "gpu", "fp16": fp16, "penalty_every": 2}
    settings |= {"aug_prob": 0.0, "mixed_prob": 0.0, "no_pl_reg": True, "num_train_steps": 16}
    trainer = sg.train_from_folder(make_config(**settings))
    replay, parameters = trainer.replay, list(trainer.GAN.parameters())
    assert [part.graph is None for part in replay.parts.values()] == 3 * [False]
    volumes = torch.rand(trainer.batch_size, 1, *trainer.config.shape)
    trainer.loader = itertools.repeat((volumes, torch.zeros(len(volumes), dtype=torch.int64)))
    halves = ((trainer.accumulate_discriminator, r) for r in (False, True))
    for accumulate, regularize in (*halves, (trainer.accumulate_generator, False)):
        found = []
        for trainer.replay in (None, replay):
            losses = trainer.compute(accumulate, regularize)
            gradients = [p.grad.clone() for p in parameters if p.grad is not None]
            found.append([*losses.values(), *gradients])
            trainer.GAN.zero_grad(set_to_none=True)
        for ordinary, replayed in zip(*found, strict=True):
            assert relative(replayed, ordinary) < 1e-2


def test_a_seed_gives_one_volume_on_both(make_config):
    config = make_config(device="cpu", num_train_steps=2, save_every=2)
    sg.train_from_folder(config)
    found = []
    for device in ("cpu", "cuda"):
        model = sg.ModelLoader(checkpoint=config.models / "model_1.pt", device=device)
        found.append(next(iter(model.volumes_of([7]))))
    assert relative(found[1], found[0]) < 1e-3


def test_programs_run_on_a_gpu(tmp_path, make_config):
    sg.train_from_folder(make_config(device="cuda", num_train_steps=2, save_every=2))
    flags = ("--top_dir", tmp_path, "--model_folder_name", "t", "--device", "cuda", "--save_directory")
    made = tmp_path / "normal"
    done = run_script("CoW_generator.py", "--mode", "normal", "--num_generate", 2, *flags, made)
    assert done.returncode == 0, done.stderr
    target = ("--target", min(made.rglob("*.nii.gz")), "--projection_steps", 20)
    done = run_script("CoW_generator.py", "--mode", "projection", *target, *flags, tmp_path / "projected")
    assert done.returncode == 0, done.stderr
    for n in range(20):
        write_volume(tmp_path / "real" / f"{n}.nii.gz", random_array(n, (16, 16, 8)))
        write_volume(tmp_path / "made" / f"{n}.nii.gz", random_array(100 + n, (16, 16, 8)))
    folders = ("--real", tmp_path / "real", "--generated", tmp_path / "made", "--output", tmp_path / "e")
    done = run_script("MedicalNet/evaluation.py", *folders, "--embedding", "random", "--device", "cuda")
    assert done.returncode == 0, done.stderr

"""What a run asks of its device: precision, memory, determinism; without a GPU."""

from volumetric import diff_augment, layers, parallel
from volumetric.cli import UserError

import pytest
import torch

import stylegan2_pytorch as sg
from tests.benchmarks import launches
from tests.conftest import SMALL


def test_a_wrong_convolution_in_half_precision_is_refused(make_config, monkeypatch):
    cpu = torch.device("cpu")
    parallel.check_half_precision(torch.bfloat16, cpu)
    parallel.check_half_precision(torch.float32, cpu)
    right = torch.autograd.grad

    def wrong(y, inputs, gradient):
        found = right(y, inputs, gradient)
        return found if gradient.dtype == torch.float32 else [found[0], found[1] * 0.9]

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    with pytest.raises(UserError, match=r"A convolution gradient in w in bfloat16 is wrong on cpu by 10%"):
        sg.train_from_folder(make_config(fp16=True, amp_dtype="bfloat16"))
    parallel.open_device(make_config(fp16=False))  # asks for none


def test_a_gpu_is_tried_with_the_runs_own_largest_layer(make_config):
    published = {"image_size": 128, "image_depth": 32, "network_capacity": 8, "fmap_max": 512}
    assert make_config(**published).largest_layer == (32, (32, 128, 128))
    assert make_config(**{**published, "fmap_max": 16}).largest_layer[0] == 16
    channels, sizes = make_config().largest_layer
    parallel.check_half_precision(torch.bfloat16, torch.device("cpu"), channels, sizes)


def test_passes_of_all_micro_batches_have_fewer_operations(monkeypatch):
    monkeypatch.setitem(launches.CONFIGS, "demo", SMALL)
    config = launches.LaunchesConfig(config="demo", batch_size=2, micro_batches=2, device="cpu")
    alone, together = (int(launches.follow(config, at_once).split(" | ")[0]) for at_once in (1, 2))
    assert together < 0.7 * alone
    assert layers.on_cpu(torch.zeros(1))


@pytest.mark.parametrize(("recipe", "rates"), [("published", 1), ("robust", 9)])
def test_an_update_is_few_operations(make_config, recipe, rates):
    """Of all tensors at once: a GPU launches as many. Adam's are for each of its rates."""
    settings = {"recipe": recipe, "average": "ramped", "amp_dtype": "float16"}
    trainer = sg.Trainer(make_config(**settings, image_size=32, image_depth=8))
    for optimizer in trainer.optimizers.values():
        for parameter in layers.trained_by(optimizer):
            parameter.grad = torch.zeros_like(parameter)
        trainer.scaler.scale(torch.ones(()))
        with launches.Operations() as operations:
            trainer.scaler.step(optimizer)  # the first also makes moments
            operations.number = 0
            trainer.scaler.update()
            trainer.scaler.scale(torch.ones(()))
            trainer.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        assert len(optimizer.param_groups) == rates and operations.number < 20 + 3 * rates
    with launches.Operations() as operations:
        trainer.update_averages()
    assert operations.number == 2


def test_volumes_on_a_gpu_need_one(make_config):
    with pytest.raises(UserError, match=r"--cache gpu keeps the volumes on a GPU, the run is on cpu"):
        sg.train_from_folder(make_config(cache="gpu"))


def test_deterministic_runs_need_a_process_that_is(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own is kept
    config = make_config(device="cuda", deterministic=True, aug_types=("rotation", "cutout"), fp16=False)
    with pytest.raises(UserError, match=r"--deterministic is not possible with rotation"):
        parallel.open_device(config, diff_augment.UNSTEADY & {*config.aug_types})
    with pytest.raises(
        UserError, match=r"call volumetric\.parallel\.prepare_process\(deterministic=True\) first"
    ):
        parallel.open_device(config)
    try:
        parallel.prepare_process("cpu", deterministic=True)
        assert parallel.open_device(config).type == "cuda" and torch.are_deterministic_algorithms_enabled()
    finally:
        parallel.prepare_process("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("recipe", ["published", "robust"])
def test_rehearsals_of_several_processes_send_no_messages(make_config, recipe):
    """No other process is there: a message would fail."""
    trainer = sg.Trainer(make_config(recipe=recipe, fp16=False), group=parallel.Group(0, 2))
    for _, work in trainer.rehearsals():
        work()
    assert type(trainer.group) is parallel.Group and not trainer.rehearsing
    second, values = parallel.Rehearsal(1, 2), torch.ones(2, requires_grad=True)
    gathered = second.gather(values)
    gathered.sum().backward()
    assert gathered.tolist() == 4 * [1.0] and values.grad.tolist() == [1.0, 1.0]
    assert second.collect(3) is None and parallel.Rehearsal(0, 2).collect(3) == [3, 3]


def test_a_processor_without_bfloat16_trains_in_float32(monkeypatch):
    cpu, chosen = torch.device("cpu"), parallel.choose_amp_dtype
    monkeypatch.setattr(parallel, "cpu_has_bfloat16", lambda: False)
    assert chosen("auto", cpu) == torch.float32 and chosen("bfloat16", cpu) == torch.bfloat16
    monkeypatch.setattr(parallel, "cpu_has_bfloat16", lambda: True)
    assert chosen("auto", cpu) == torch.bfloat16 and chosen("auto", torch.device("cuda")) == torch.float16
    for dtype, enabled, half in ((torch.float32, True, False), (torch.bfloat16, True, True)):
        with parallel.autocast(cpu, dtype, enabled):
            assert torch.is_autocast_enabled("cpu") == half

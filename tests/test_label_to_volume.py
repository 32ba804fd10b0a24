"""Label maps to volumes: layers and losses by hand, bad pairs, exact resuming, processes, drawing."""

import csv
import json
from dataclasses import replace

from volumetric import cli, runs, training
from volumetric.cli import UserError
from volumetric.layers import haar, inverse_haar
from volumetric.sidecars import drawn_for, trained_on
from volumetric.tables import read_table

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import label_to_volume as l2v
from segmentation import maps
from segmentation.labels import save_labels
from tests.conftest import interrupted_at, random_array, run_script, write_volume
from tests.test_distributed import run_two
from tests.test_training import assert_same_state

SETTINGS = {"image_size": 16, "image_depth": 8, "width": 4, "disc_width": 4, "fmap_max": 16, "spade_width": 8}
SETTINGS |= {"z_dim": 8}
SHAPE = (16, 16, 8)
NAMES = {1: "R-A", 2: "L-A", 5: "B"}
AFFINE = np.array([[0.5, 0, 0, -4], [0, 0.5, 0, -4], [0, 0, 1, -4], [0, 0, 0, 1.0]])


def write_pairs(folder, number=6):
    """Folders volumes/ and labels/ of pairs: two bars with sides and a middle one, brighter than noise."""
    for n in range(number):
        ids = np.zeros(SHAPE, np.uint8)
        ids[3:6, 2 + n : 6 + n, 2:6], ids[10:13, 4:9, 1 + n % 3 : 5], ids[7:9, 12:14] = 2, 1, 5
        volume = 0.2 * random_array(n, SHAPE) + 0.3 * (ids > 0) + 0.1 * ids
        write_volume(folder / "volumes" / f"v{n}.nii.gz", volume, AFFINE)
        write_volume(folder / "labels" / f"v{n}.nii.gz", ids, AFFINE)
    (folder / "table.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return folder


@pytest.fixture
def pairs(tmp_path):
    """Folder of `write_pairs`."""
    return write_pairs(tmp_path)


def settings_of(folder, **settings):
    """Settings of a tiny run in a folder."""
    where = {"data": folder / "volumes", "labels": folder / "labels", "table": folder / "table.json"}
    where |= {"results_dir": folder / "results", "models_dir": folder / "models"}
    tiny = {"name": "t", "device": "cpu", "batch_size": 2, "held_out": 0.2, "num_previews": 1}
    return {**SETTINGS, **tiny, **{key: str(path) for key, path in where.items()}, **settings}


def config_of(folder, **settings):
    """Configuration of a tiny run in a folder."""
    return l2v.LabelToVolumeConfig(**settings_of(folder, **settings))


def flags_of(folder, **settings):
    """Command line of a tiny run in a folder."""
    return [part for name, value in settings_of(folder, **settings).items() for part in (f"--{name}", value)]


def network_settings(**settings):
    """Settings of tiny networks."""
    return {"norm": "instance", "noise": "global", "generator": "spade", **SETTINGS, **settings}


# ---- layers and losses


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_haar_keeps_energy_and_can_be_undone(stride):
    x = torch.randn(2, 3, 4, 8, 8)
    bands = haar(x, stride)
    assert bands.shape == (
        2,
        3 * np.prod(stride),
        *(n // s for n, s in zip(x.shape[2:], stride, strict=True)),
    )
    assert float(bands.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)
    assert float((inverse_haar(bands, stride) - x).abs().max()) < 1e-6
    mean = F.avg_pool3d(x, stride) * np.prod(stride) ** 0.5
    assert float((bands[:, :3] - mean).abs().max()) < 1e-5  # the first band is the smaller volume


def test_spade_with_one_class_everywhere_modulates_all_alike():
    torch.manual_seed(0)
    layer = l2v.Spade(6, 2, network_settings())
    shares = l2v.one_hot(torch.ones(1, 6, 6, 6, dtype=torch.uint8), 2)
    x = torch.randn(1, 6, 6, 6, 6)
    found = layer(x, l2v.Layout(shares, torch.randn(1, 1, 8), "global"))
    mean, std = x.mean(dim=(2, 3, 4), keepdim=True), x.std(dim=(2, 3, 4), keepdim=True, unbiased=False)
    normal, inside = (x - mean) / std, (slice(None), slice(None), *3 * [slice(2, 4)])
    one, other = normal[inside].flatten(2)[..., 0], normal[inside].flatten(2)[..., 7]
    a, b = found[inside].flatten(2)[..., 0], found[inside].flatten(2)[..., 7]
    factor = (a - b) / (one - other)  # every voxel inside has one factor and one term
    term = a - factor * one
    torch.testing.assert_close(
        found[inside],
        normal[inside] * factor[..., None, None, None] + term[..., None, None, None],
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_map_decides_where_and_z_how():
    torch.manual_seed(0)
    generator = l2v.SpadeGenerator(2, network_settings())
    numbers = torch.zeros(1, 8, 16, 16, dtype=torch.uint8)
    numbers[..., :8] = 1
    other = numbers.flip(3)

    def made(numbers, seed):
        z = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return generator.eval()(l2v.Layout(l2v.one_hot(numbers, 2), z, "global"))

    first = made(numbers, 0)
    assert first.shape == (1, 1, 8, 16, 16) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first, made(numbers, 0))
    assert float((first - made(other, 0)).abs().max()) > 1e-3
    assert float((first - made(numbers, 1)).abs().max()) > 1e-4


def test_grain_comes_by_learned_strengths_and_not_of_former_versions():
    torch.manual_seed(0)
    settings = network_settings()
    generator, former = l2v.SpadeGenerator(2, settings), l2v.SpadeGenerator(2, settings)
    shares = l2v.one_hot(torch.zeros(1, 8, 16, 16, dtype=torch.uint8), 2)
    z, grain = torch.randn(1, 1, 8), torch.randn(2, 1, 8, 16, 16)

    def made(network, grain):
        with torch.no_grad():
            return network.eval()(l2v.Layout(shares, z, "global", grain))

    assert torch.equal(made(generator, grain[:1]), made(generator, None))  # the strengths begin at 0
    former.load_state_dict({k: v for k, v in generator.state_dict().items() if not k.endswith(".grain")})
    for block in generator.blocks:
        nn.init.ones_(block.grain)
    first, second = made(generator, grain[:1]), made(generator, grain[1:])
    assert float((first - second).std()) > 1e-3 and torch.equal(first, made(generator, grain[:1]))
    assert torch.equal(made(former, grain[:1]), made(generator, None))
    layout = l2v.Layout(shares, z, "global", torch.randn(1, 1, 8, 16, 16))
    assert [float(layout.grain_at(s).std()) for s in ((8, 16, 16), (4, 8, 8))] == pytest.approx(
        [1, 1], abs=0.2
    )


def test_z_of_a_region_is_felt_there_alone():
    """A layout's terms: of one class, or of one of 64 boxes, where these are and nowhere else."""
    numbers = torch.zeros(1, 8, 16, 16, dtype=torch.uint8)
    numbers[:, 2:4, 4:8, 4:8] = 1
    terms = torch.zeros(1, 3, 5)
    terms[:, 1] = 1.0
    layout = l2v.Layout(l2v.one_hot(numbers, 2), None, "class")
    spread = layout.spread(terms, (8, 16, 16))
    assert torch.equal(spread[0, 0], (numbers[0] == 1).float())
    assert float(layout.spread(terms, (4, 8, 8))[0, 0].sum()) == pytest.approx(2 * 4 * 4 / 8)  # shares
    boxes = torch.zeros(1, 64, 5)
    boxes[:, 63] = 1.0
    spread = l2v.Layout(l2v.one_hot(numbers, 2), None, "local").spread(boxes, (8, 16, 16))[0, 0]
    assert torch.equal(spread[6:, 12:, 12:], torch.ones(2, 4, 4)) and spread.sum() == 32


def test_unknown_voxels_are_of_no_class():
    numbers = torch.tensor([0, 1, 255, 2], dtype=torch.uint8).view(1, 1, 2, 2)
    assert l2v.one_hot(numbers, 2).sum(dim=1).flatten().tolist() == [1, 1, 0, 1]


def test_class_weights_by_hand():
    found = l2v.class_weights(torch.tensor([60.0, 30.0, 0.0, 10.0]), 3.0)  # 100 voxels, three classes
    assert found.tolist() == pytest.approx([1.0, 100 / (3 * 30), 3.0, 3.0])  # 0.56 and 3.3 are clamped


def test_loss_of_n_plus_one_classes_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 0.0]]).T.view(1, 4, 1, 1, 2)
    numbers = torch.tensor([2, 0], dtype=torch.uint8).view(1, 1, 1, 2)
    weights = torch.tensor([1.0, 5.0, 2.0])
    first = -np.log(np.exp(3) / np.exp([0, 1, 2, 3]).sum())  # class 2 of the map is the fourth of four
    second = -np.log(1 / (np.e + 3))  # the background is the second
    assert float(l2v.n_plus_one_loss(logits, numbers, weights)) == pytest.approx((2 * first + second) / 2)
    unknown = torch.tensor([2, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert float(l2v.n_plus_one_loss(logits, unknown, weights)) == pytest.approx(first)
    generated = (-np.log(1 / np.exp([0, 1, 2, 3]).sum()) - np.log(np.e / (np.e + 3))) / 2
    assert float(l2v.generated_loss(logits)) == pytest.approx(generated)


def test_labelmix_takes_whole_classes_and_is_nothing_for_a_linear_network(pairs, monkeypatch):
    numbers = torch.randint(0, 4, (3, 4, 8, 8), dtype=torch.uint8)
    mask = l2v.labelmix_mask(numbers, np.random.default_rng(1))
    for one, of in zip(mask[:, 0], numbers, strict=True):
        assert {tuple(one[of == n].unique().tolist()) for n in range(4)} <= {(0.0,), (1.0,)}
    assert 0 < float(mask.mean()) < 1
    real, fake = torch.rand(2, 3, 1, 4, 8, 8)
    trainer = build_trainer(pairs, fp16=False)
    linear = lambda volumes: 2 * volumes  # noqa: E731
    logits = (linear(real), linear(fake))
    rng = np.random.default_rng(1)
    assert float(trainer.labelmix(linear, real, fake, numbers, logits, rng)) < 1e-12
    squares = lambda volumes: volumes.square() + 1.0 * (volumes > 0.5)  # noqa: E731
    assert float(trainer.labelmix(squares, real, fake, numbers, (linear(real), linear(fake)), rng)) > 1e-3


def test_what_touches_a_rare_class_weighs_as_much(pairs):
    """Of a row of background, background, vessel, unknown: 1, 10, 10 and nothing; of mean 1 in the loss."""
    numbers = torch.tensor([0, 0, 1, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    shares, weights = l2v.one_hot(numbers, 1), torch.tensor([1.0, 10.0])
    assert l2v.heaviest_near(shares, weights).flatten().tolist() == [1, 10, 10, 0]
    real = torch.tensor([1.0, 2.0, 3.0, 9.0]).view(1, 1, 1, 1, 4)
    found = build_trainer(pairs).l1_loss(torch.zeros_like(real), real, shares, weights)
    assert float(found) == pytest.approx((1 + 20 + 30 + 0) / (1 + 10 + 10 + 0))


def test_mask_loss_has_a_gradient():
    volumes = torch.rand(2, 1, 4, 8, 8).requires_grad_()
    body = (torch.rand(2, 1, 4, 8, 8) > 0.5).float()
    l2v.mask_loss(volumes, body, 0.5).backward()
    assert (volumes.grad != 0).float().mean() > 0.99
    assert ((volumes.grad > 0) == (body == 0)).float().mean() > 0.99  # darker where there is no body
    assert float(l2v.mask_loss(body, body, 0.5)) < 1e-4


def test_centre_lines_that_are_found_cost_little():
    numbers = torch.zeros(1, 8, 16, 16, dtype=torch.uint8)
    numbers[0, 3:5, 2:14, 7:9] = 1
    right = torch.stack([torch.zeros_like(numbers), numbers == 0, numbers == 1], dim=1).float() * 20
    broken = right.clone()
    broken[:, 1, :, 6:10], broken[:, 2, :, 6:10] = 20, 0
    costs = [float(l2v.centre_line_loss(logits, numbers)) for logits in (right, broken)]
    assert costs[0] < 0.05 and costs[1] > costs[0] + 0.1


@pytest.mark.parametrize("name", l2v.DISCRIMINATORS)
@pytest.mark.parametrize("size", [(16, 16), (16, 4), (32, 8)])
def test_discriminators_have_the_shapes_they_say(name, size):
    settings = network_settings(image_size=size[0], image_depth=size[1])
    volumes = torch.rand(2, 1, size[1], size[0], size[0]).requires_grad_()
    shares = l2v.one_hot(torch.zeros(2, size[1], size[0], size[0], dtype=torch.uint8), 3)
    logits = l2v.KINDS[name](3, settings)(volumes, shares)
    if name == "wavelet":
        assert float((logits[0] - logits[1]).abs().detach()) > 0.05  # what differs reaches the end
    if name == "oasis":
        assert logits.shape == (2, 5, size[1], size[0], size[0])
    else:
        assert logits.shape[0] == 2 and logits.ndim == {"wavelet": 1, "patch": 4}[name]
    logits.sum().backward()
    assert (volumes.grad != 0).all()


# ---- training


def build_trainer(folder, **settings):
    """Trainer of a tiny run, not begun."""
    config = config_of(folder, **settings)
    audit = l2v.dataset.audit_volumes(config.data, config.array_shape)
    return l2v.Trainer(config, audit, None, maps.read_pairs(config, audit))


RUNS = {
    "plain": {},
    "patch": {"discriminator": ("patch",), "generator": "unet", "mask_weight": 1.0},
    "all": {"discriminator": ("oasis", "wavelet", "patch"), "noise": "class", "cldice_weight": 1.0},
    "local": {"noise": "local", "norm": "group", "amp_dtype": "float16", "checkpoint_activations": True},
}


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(pairs, name):
    settings = {"num_train_steps": 4, "r1_every": 2, "final_rate": 0.1, **RUNS[name]}
    whole = l2v.train_from_folder(config_of(pairs, name="whole", **settings))
    with interrupted_at(l2v.Trainer, 3):
        assert l2v.train_from_folder(config_of(pairs, name="parts", **settings)).step == 3
    parts = l2v.train_from_folder(config_of(pairs, name="parts", **settings))
    assert_same_state(*(runs.read_state(t.config.models / "model_0.pt") for t in (whole, parts)))
    with open(whole.config.results / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and set(whole.plan.columns) <= rows[0].keys()
    assert all(rows[0][column] for column in whole.plan.columns)


def test_two_processes_have_the_gradients_of_one(pairs):
    """Adam's first moment is the gradient, for its first beta is 0; the rate is too small to change much."""
    settings = {"fp16": False, "num_train_steps": 1, "learning_rate": 1e-9, "gradient_accumulate_every": 2}
    settings |= {"discriminator": "oasis,wavelet,patch", "noise": "class"}
    found = {}
    for name, run in (("one", run_script), ("two", run_two)):
        ended = run("label_to_volume.py", *flags_of(pairs, name=name, **settings))
        assert ended.returncode == 0, ended.stderr
        found[name] = runs.read_state(runs.find_checkpoint(pairs / "models" / name))
    for optimizer in ("G_opt", "D_opt"):
        one, two = ([m["exp_avg"] for m in found[n][optimizer]["state"].values()] for n in ("one", "two"))
        largest = max(float(t.abs().max()) for t in one)
        assert len(one) == len(two) > 20 and largest > 0
        assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) < 1e-5 * largest


def test_pairs_are_turned_together_and_sides_exchanged(pairs):
    trainer = build_trainer(pairs, mirror=True)
    assert trainer.other_side[:4].tolist() == [0, 2, 1, 3] and trainer.other_side[255] == 255
    rng = np.random.default_rng(0)
    for _ in range(4):
        volumes, numbers = trainer.next_pairs(rng)
        bright = volumes[:, 0] > 0.45
        assert ((numbers > 0) == bright).float().mean() > 0.99
        side = [float(torch.nonzero(n == 1)[:, 1].float().mean()) for n in numbers]  # R-A: X above the middle
        assert min(side) > 8


def test_held_out_subjects_are_not_trained_on(pairs):
    (pairs / "subjects.csv").write_text(
        "\n".join(["file,subject", *(f"v{n}.nii.gz,s{n // 2}" for n in range(6)), ""]), encoding="utf-8"
    )
    trainer = build_trainer(pairs, subjects=str(pairs / "subjects.csv"), held_out=0.3)
    held = set(trainer.pairs.held_out.tolist())
    assert held in ({0, 1}, {2, 3}, {4, 5}) and set(trainer.members.tolist()) == set(range(6)) - held
    seen = set()
    for _ in range(12):
        seen |= set(trainer.next_volumes(0)[1].tolist())
    assert seen == set(trainer.members.tolist())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with pairs and a tiny trained run."""
    folder = write_pairs(tmp_path_factory.mktemp("trained"))
    l2v.train_from_folder(config_of(folder, num_train_steps=1))
    return folder


def held_out_by(folder, known, **settings):
    """(names held out, names trained on) of a run that is not begun."""
    config = config_of(folder, **settings)
    audit = l2v.dataset.audit_volumes(
        config.data, config.array_shape, split=config.split, parts=("training", "held_out")
    )
    found = maps.read_pairs(config, audit, known)
    held_out, trained = ({audit.paths[i].name[:-7] for i in of} for of in (found.held_out, found.trained))
    return held_out, trained


def test_what_a_run_holds_out_stays_so(trained, pairs, capsys):
    """Whatever --seed, --held_out, names and further pairs say: a checkpoint knows both sides by content."""
    checkpoint, former = trained / "models" / "t" / "model_0.pt", held_out_by(pairs, None)
    held, seen = former
    assert len(held) == 2 and len(seen) == 4 and held != held_out_by(pairs, None, seed=7)[0]
    rows = read_table(trained / "results" / "t" / "split.csv")
    assert {row["file"][:-7] for row in rows if row["part"] == "held_out"} == held and len(rows) == 6
    contents = {row[of] for row in rows if row["part"] == "training" for of in ("content", "labels")}
    assert set(runs.read_state(checkpoint)["trained_on"]) == contents and len(contents) == 8
    known = maps.Known.read(checkpoint, goes_on=True)
    for settings in ({"seed": 7}, {"held_out": 0.6}, {"held_out": 0.0}):
        assert held_out_by(pairs, known, **settings) == former
    settings = l2v.Trainer.former_settings(config_of(pairs), checkpoint)
    training.adopt_settings(config_of(pairs, seed=7), settings, checkpoint)
    told = capsys.readouterr().out
    assert "--seed was 42 when" in told and "and is 7 now" in told
    with pytest.raises(UserError, match=r"--held_out is 0\.6, but .*model_0\.pt has 0\.2"):
        training.adopt_settings(config_of(pairs, held_out=0.6), settings, checkpoint)
    write_pairs(pairs, 8)
    assert held_out_by(pairs, known) == (held, seen | {"v6", "v7"})  # what is new is trained on
    other, one = sorted(held)[0], sorted(seen)[0]
    for kind in ("volumes", "labels"):  # another name is no other pair
        (pairs / kind / f"{other}.nii.gz").rename(pairs / kind / "renamed.nii.gz")
    held = held - {other} | {"renamed"}
    assert held_out_by(pairs, known)[0] == held
    ids = np.asanyarray(nib.load(pairs / "labels" / "renamed.nii.gz").dataobj)
    write_volume(pairs / "labels" / "v7.nii.gz", ids, AFFINE)  # a volume for a map that is held out
    assert held_out_by(pairs, known)[0] == held | {"v7"}
    begun = replace(known, goes_on=False)  # --init_from holds out more, and nothing that was trained on
    assert held_out_by(pairs, begun, held_out=0.6)[0] == held | {"v7", "v6"}
    (pairs / "subjects.csv").write_text(f"file,subject\nrenamed,s\n{one},s\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"would be held out, and .*model_0\.pt was trained on it"):
        held_out_by(pairs, begun, subjects=str(pairs / "subjects.csv"))


def test_a_split_says_what_is_held_out(pairs):
    config, table = config_of(pairs), pairs / "split.csv"
    audit = l2v.dataset.audit_volumes(config.data, config.array_shape)
    parts = ["training", "training", "training", "held_out", "held_out", "test"]

    def held_out(parts, known=None):
        rows = ["file,content,subject,part"]
        for path, content, part in zip(audit.paths, audit.contents, parts, strict=True):
            rows.append(f"{path.name},{content},{path.name},{part}")
        table.write_text("\n".join([*rows, ""]), encoding="utf-8")
        return held_out_by(pairs, known, split=str(table))

    assert held_out(parts) == ({"v3", "v4"}, {"v0", "v1", "v2"})
    rows = ({"file": "v3", "content": audit.contents[3]},)
    known = maps.Known(pairs / "old.pt", True, frozenset(audit.contents[:3]), rows)
    assert held_out(parts, known)[0] == {"v3", "v4"}
    with pytest.raises(UserError, match=r"sets v0\.nii\.gz aside, and .*old\.pt was trained on it"):
        held_out(["held_out", *parts[1:]], known)
    with pytest.raises(UserError, match=r"v3\.nii\.gz would be trained on, and .*old\.pt holds it out"):
        held_out([*parts[:3], "training", *parts[4:]], known)


def test_held_out_pairs_of_an_earlier_version(pairs, tmp_path):
    torch.save({"held_out": ["v1", "v4"], "step": 1}, tmp_path / "old.pt")  # names alone
    known = maps.Known.read(tmp_path / "old.pt", goes_on=True)
    assert held_out_by(pairs, known)[0] == {"v1", "v4"}


def test_a_checkpoint_without_grain_is_not_continued(pairs):
    trainer = build_trainer(pairs)
    state = trainer.state()
    state["label_to_volume"] = {k: v for k, v in state["label_to_volume"].items() if not k.endswith(".grain")}
    with pytest.raises(UserError, match="without grain: it draws, but trains no further"):
        trainer.load(state)


def test_activations_computed_again_give_the_same_gradients(pairs):
    """The vectors of a spectral norm move once a pass, and sigma is that of the pass."""
    found = []
    for again in (False, True):
        trainer = build_trainer(pairs, checkpoint_activations=again, fp16=False)
        G = trainer.networks.G
        for _ in range(2):
            trainer.accumulate_generator(1)
        weights = {name: p.grad for name, p in G.named_parameters()}
        found.append((weights, dict(G.named_buffers())))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() and len(one) > 10
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_memory_is_predicted_and_saved_by_computing_again(pairs):
    config = config_of(pairs, dry_run=True, discriminator=("oasis",), image_size=16)
    audit = l2v.dataset.audit_volumes(config.data, config.array_shape, keep=False)
    found = maps.read_pairs(config, audit)
    peaks = [
        training.rehearse_on_cpu(
            lambda config, audit, group: l2v.Trainer(config, audit, group, found),
            replace(config, checkpoint_activations=again, width=16),
            audit,
            training.parallel.Group(),
        )["generator"]
        for again in (False, True)
    ]
    assert peaks[1] < peaks[0]


# ---- what is refused


def test_flags_that_do_not_go_together(pairs):
    for settings, text in (
        ({"discriminator": ("wavelet",)}, "does not see labels"),
        ({"discriminator": ()}, "--discriminator none"),
        ({"generator": "unet", "noise": "class"}, "one z a volume"),
        ({"discriminator": ("patch",), "cldice_weight": 1.0}, "needs the classes"),
        ({"held_out": 1.0}, "leaves nothing"),
        ({"adam_betas": (0.5,)}, "two numbers"),
        ({"edit": ("cut:L-A",)}, "--edit takes"),
        ({"edit": ("thin:L-A:wide",)}, "no length in mm"),
        ({"edit": ("drop",)}, "--edit takes"),
    ):
        with pytest.raises(UserError, match=text):
            config_of(pairs, **settings)
    assert run_script("label_to_volume.py", "--discriminators", "oasis", fresh=True).returncode != 0
    parsed = cli.parse_cli(l2v.LabelToVolumeConfig, ["--discriminator", "oasis,patch", "--edit", "drop:L-A"])
    assert parsed.discriminator == ("oasis", "patch") and parsed.edits == [("drop", "L-A", None)]
    several = cli.parse_cli(l2v.LabelToVolumeConfig, ["--edit", "[drop:L-A, thin:B:0.4]"])
    assert several.edits == [("drop", "L-A", None), ("thin", "B", 0.4)]


def spoil_partner(folder):
    (folder / "labels" / "v3.nii.gz").unlink()


def spoil_grid(folder):
    ids = np.asanyarray(nib.load(folder / "labels" / "v3.nii.gz").dataobj)
    write_volume(folder / "labels" / "v3.nii.gz", ids, np.diag([0.6, 0.5, 1, 1]))


def spoil_values(folder):
    ids = np.asanyarray(nib.load(folder / "labels" / "v3.nii.gz").dataobj)
    write_volume(folder / "labels" / "v3.nii.gz", ids.astype(np.float32) + 0.25 * (ids == 5), AFFINE)


def spoil_ids(folder):
    ids = np.asanyarray(nib.load(folder / "labels" / "v3.nii.gz").dataobj)
    write_volume(folder / "labels" / "v3.nii.gz", np.where(ids == 5, 9, ids).astype(np.uint8), AFFINE)


def spoil_classes(folder):
    write_volume(folder / "labels" / "v3.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_partner, r"v3.nii.gz has no partner in --labels"),
        (spoil_grid, r"v3.nii.gz is of another grid than .*resample it, by nearest neighbour"),
        (spoil_values, r"v3.nii.gz has values that are no whole numbers"),
        (spoil_ids, r"v3.nii.gz has the ids 9, which are not of the table"),
        (spoil_classes, r"v3.nii.gz has one class alone"),
    ],
)
def test_bad_pairs_are_one_line_each(pairs, spoil, text):
    spoil(pairs)
    if spoil is spoil_classes:
        run = run_script("label_to_volume.py", *flags_of(pairs))
        assert run.returncode != 0 and "Traceback" not in run.stderr
    with pytest.raises(UserError, match=text):
        l2v.train_from_folder(config_of(pairs))
    assert not (pairs / "models").exists() or not any((pairs / "models").rglob("*.pt"))


def test_tables_and_unknown_voxels(pairs):
    assert maps.read_table("topcow2024")[10] == "Acom" and maps.read_table(None) is None
    with pytest.raises(UserError, match="--table nowhere is no file"):
        maps.read_table("nowhere")
    (pairs / "bad.json").write_text('{"300": "x"}', encoding="utf-8")
    with pytest.raises(UserError, match="ids from 1 to 254"):
        maps.read_table(str(pairs / "bad.json"))
    config = config_of(pairs, table=None, ignore=5)
    audit = l2v.dataset.audit_volumes(config.data, config.array_shape)
    found = maps.read_pairs(config, audit)
    assert found.table == {1: "1", 2: "2"} and set(found.maps.unique().tolist()) == {0, 1, 2, 255}


# ---- drawing


def test_volumes_are_drawn_and_drawn_again(trained, capsys):
    out = trained / "made"
    config = config_of(trained, generate=str(trained / "labels"), output=str(out), num_per_map=2, seed=5)
    l2v.generate_volumes(config)
    volumes = sorted(out.glob("*.nii.gz"))
    assert len(volumes) == 12 and (out / "contact_sheet.png").is_file()
    sidecars = [path.with_name(f"{path.name[:-7]}.json") for path in volumes]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sidecars]
    seeds = [record["seed"] for record in records]
    assert len(set(seeds)) == 12 and seeds[1] == seeds[0] + 1  # each map has its own, whatever lies beside it
    assert [p.name for p in volumes][:2] == [f"v0_seed{seed:06d}.nii.gz" for seed in seeds[:2]]
    record = records[0]
    assert record["synthetic"] is True
    assert record["label_map"]["sha256"] == maps.file_digest(trained / "labels" / "v0.nii.gz")
    image = nib.load(volumes[0])
    assert np.allclose(image.affine, AFFINE) and image.shape == SHAPE
    for path in volumes:  # the labels of every volume, under its name
        drawn = np.asanyarray(nib.load(trained / "made_labels" / path.name).dataobj)
        assert (
            drawn == np.asanyarray(nib.load(trained / "labels" / f"{path.name[:2]}.nii.gz").dataobj)
        ).all()
    assert not np.allclose(image.get_fdata(), nib.load(volumes[1]).get_fdata())
    l2v.generate_volumes(config)
    assert "12 volumes are there already" in capsys.readouterr().out
    l2v.recreate(config_of(trained, recreate=str(sidecars[1])))
    assert f"{volumes[1].name}: identical" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"made with another choice of networks: choose another --output"):
        l2v.generate_volumes(replace(config, use_average=False))
    write_volume(volumes[1], random_array(0, SHAPE), AFFINE)
    with pytest.raises(UserError, match="differs from what its sidecar describes"):
        l2v.recreate(config_of(trained, recreate=str(sidecars[1])))


def test_variants_are_asked_for(trained):
    flags = flags_of(trained, generate=trained / "labels", output=trained / "without", edit="drop:L-A")
    run = run_script("label_to_volume.py", *flags)
    assert run.returncode == 0, run.stderr
    (path,) = (trained / "without_labels").glob("v1_seed*.nii.gz")
    drawn = np.asanyarray(nib.load(path).dataobj)
    assert set(np.unique(drawn)) == {0, 1, 5}
    with pytest.raises(UserError, match="--edit names Pcom, the model's classes are R-A, L-A, B"):
        l2v.generate_volumes(config_of(trained, generate=str(trained / "labels"), edit=("drop:Pcom",)))


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_normalisation_keeps_its_digits_far_from_zero(norm):
    """A mean of 100 deviations, channels last: the error was 0.1 of a deviation; gradients too."""
    x = torch.randn(2, 16, 8, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 100
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups, exact = 16 if norm == "instance" else l2v.GROUPS, x.clone().requires_grad_()
    right = F.group_norm(exact, groups)
    (right * weight).sum().backward()
    last = x.float().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    found = l2v.normalized(last, norm)
    (found * weight.float()).sum().backward()
    assert float((found - right).detach().abs().max()) < 1e-4
    assert float((last.grad - exact.grad).abs().max()) < 1e-3
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_maps_of_another_grid_are_brought_there_if_asked(trained):
    folder = trained / "large"
    ids = np.zeros((40, 48, 30), np.uint8)
    ids[8:14, 10:20, 5:20], ids[24:30, 10:20, 5:20] = 1, 2
    write_volume(
        folder / "a.nii.gz",
        ids,
        np.array([[-0.25, 0, 0, 5], [0, 0.25, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1.0]]),
    )
    config = config_of(trained, generate=str(folder), output=str(trained / "fitted"))
    with pytest.raises(UserError, match=r"another grid than the model.*--fit brings it there"):
        l2v.generate_volumes(config)
    l2v.generate_volumes(replace(config, fit=True))
    (path,) = (trained / "fitted_labels").glob("a_seed*.nii.gz")
    image = nib.load(path)
    found = np.asanyarray(image.dataobj)
    assert found.shape == SHAPE and nib.aff2axcodes(image.affine) == ("R", "A", "S")
    voxels = [(found == n).sum() * 0.25 for n in (1, 2)]  # mm3
    assert voxels == pytest.approx([6 * 10 * 15 / 32] * 2, rel=0.35)
    place = {
        n: image.affine[:3, :3] @ np.argwhere(found == n).mean(axis=0) + image.affine[:3, 3] for n in (1, 2)
    }
    assert place[1][0] == pytest.approx(5 - 0.25 * 10.5, abs=0.3) and place[1][0] > place[2][0]


def test_what_is_drawn_lies_as_its_map_does(trained, tmp_path, capsys):
    """Unknown voxels stay unknown, axes are those of the map, and folders say what was drawn and seen."""
    state = runs.read_state(trained / "models" / "t" / "model_0.pt")
    state["config"]["ignore"] = 200
    (tmp_path / "models" / "t").mkdir(parents=True)
    checkpoint, label_map = tmp_path / "models" / "t" / "model_1.pt", tmp_path / "maps" / "a" / "m.nii.gz"
    torch.save(state, checkpoint)
    ids = np.asanyarray(nib.load(trained / "labels" / "v0.nii.gz").dataobj).copy()
    ids[:2, :3] = 200
    turned = AFFINE @ np.diag([-1, 1, 1, 1])
    write_volume(label_map, ids[::-1], turned)
    where = {"models_dir": str(tmp_path / "models"), "output": str(tmp_path / "made")}
    made = l2v.generate_volumes(config_of(trained, generate=str(tmp_path / "maps"), **where))
    (volume,) = (made / "a").glob("m_seed*.nii.gz")
    drawn = nib.load(tmp_path / "made_labels" / "a" / volume.name)
    assert np.array_equal(np.asanyarray(drawn.dataobj), ids[::-1]) and np.allclose(drawn.affine, turned)
    assert np.allclose(nib.load(volume).affine, turned)
    l2v.recreate(config_of(trained, recreate=str(volume.with_name(f"{volume.name[:-7]}.json")), **where))
    assert f"{volume.name}: identical" in capsys.readouterr().out
    assert set(trained_on(made)) == set(state["trained_on"])
    assert set(drawn_for(made)) == {maps.content_of_labels(ids)}
    model = l2v.LabelModel(checkpoint, "cpu")
    model.table = dict(maps.TABLES["topcow2024"])
    save_labels(np.where(ids == 200, 0, ids), AFFINE, label_map, "paper")
    with pytest.raises(UserError, match=r"says that its ids are of paper, expected topcow2024"):
        model.read_map(label_map, False, [])

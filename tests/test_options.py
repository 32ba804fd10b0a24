"""The options beyond the published model: blocks, regularisers, augmentations, classes."""

import math

from volumetric import dataset, diff_augment, optional_layers, parallel, runs

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import CoW_generator as generator
import stylegan2_pytorch as sg
from tests.conftest import random_array, write_volume

SIZE = {"image_size": 8, "image_depth": 4, "latent_dim": 16, "network_capacity": 2, "fmap_max": 16}
SPACING = (0.8, 0.6, 0.5)
NEW = {
    "rotation": (diff_augment.rotate, {"degrees": 0}),
    "scaling": (diff_augment.scale, {"strength": 0}),
    "bias_field": (diff_augment.bias_field, {"strength": 0}),
    "noise": (diff_augment.rician_noise, {"strength": 0}),
    "blur": (diff_augment.blur, {"strength": 0}),
}


def volumes_of(seed, shape=(2, 1, 4, 8, 8)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- blocks


def test_attention_is_the_attention_of_every_voxel_to_every_voxel():
    torch.manual_seed(0)
    layer, x = optional_layers.LinearAttention(16), torch.randn(2, 16, 3, 4, 2)
    q, k, v = (
        rearrange(t, "b (h c) x y z -> b h (x y z) c", h=8)
        for t in (layer.to_q(x), *layer.to_kv(x).chunk(2, 1))
    )
    weights = torch.empty(2, 8, 24, 24)  # between all pairs of voxels
    for i in range(24):
        for j in range(24):
            across, along = q[:, :, i].softmax(-1), k.softmax(2)[:, :, j]
            weights[:, :, i, j] = (across * along).sum(-1) / math.sqrt(q.shape[-1])
    naive = layer.to_out(rearrange(F.gelu(weights @ v), "b h (x y z) c -> b (h c) x y z", x=3, y=4))
    torch.testing.assert_close(layer(x), naive, rtol=1e-4, atol=1e-6)


def test_attention_heads_follow_the_channels():
    assert [optional_layers.LinearAttention(c).to_q.out_channels for c in (4, 64, 512)] == [64, 128, 512]


def test_channel_norm_is_over_channels():
    x = optional_layers.ChannelNorm(8)(torch.randn(2, 8, 2, 3, 4) * 5 + 3)
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.var(1, correction=0), torch.ones(2, 2, 3, 4), rtol=1e-3, atol=0)


def test_attention_is_at_the_named_blocks_counted_from_the_volume():
    G = sg.Generator(32, 8, 16, 2, 16, attn_layers=(1, 3))
    D = sg.Discriminator(32, 8, 2, 16, attn_layers=(1, 3))
    assert G.attention["1"].attention[0].factor.numel() == G.blocks[-1].conv1.weight.shape[1]
    assert G.attention["3"].attention[0].factor.numel() == G.blocks[-3].conv1.weight.shape[1]
    assert D.attention["1"].attention[0].factor.numel() == D.blocks[0].conv_res.out_channels
    assert D.attention["3"].attention[0].factor.numel() == D.blocks[2].conv_res.out_channels


def test_quantiser_takes_the_nearest_code_and_lets_gradients_through():
    torch.manual_seed(0)
    layer = optional_layers.FeatureQuantizer(4, 8)
    x = torch.randn(2, 4, 2, 3, 2, requires_grad=True)
    y, loss = layer(x)
    codes = layer.quantize.codebook
    voxels = rearrange(x.detach(), "b c x y z -> (b x y z) c")
    nearest = codes[torch.cdist(voxels, codes).argmin(1)]
    torch.testing.assert_close(rearrange(y, "b c x y z -> (b x y z) c"), nearest)
    assert loss.item() == pytest.approx(float(F.mse_loss(voxels, nearest)), rel=1e-5)
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, weights)  # straight through
    assert layer.taken.sum() == len(set(map(tuple, nearest.tolist())))


def test_codes_move_only_while_the_discriminator_learns():
    D = sg.Discriminator(8, 4, 2, 16, fq_layers=(1,), fq_dict_size=8)
    before = D.quantizers["1"].quantize.codebook.clone()
    D(volumes_of(0))
    assert torch.equal(before, D.quantizers["1"].quantize.codebook)
    with D.learning_codes():
        _, loss = D(volumes_of(0))
    assert not torch.equal(before, D.quantizers["1"].quantize.codebook) and loss.item() > 0
    assert 0 < D.taken_codes().sum() <= 8


def test_without_constant_the_style_decides_the_start():
    torch.manual_seed(0)
    G = sg.Generator(8, 4, 16, 2, 16, no_const=True)
    assert "initial_block" not in G.state_dict() and "to_initial_block.weight" in G.state_dict()
    styles = torch.randn(2, G.num_layers, 16)
    start = G.initial(styles)
    assert start.shape == (2, 8, 4, 4, 4) and not torch.equal(start[0], start[1])
    # the mean over the blocks counts, as a product with the kernel
    expected = torch.einsum("bl,lcxyz->bcxyz", styles.mean(1), G.to_initial_block.weight)
    torch.testing.assert_close(start, expected)


# ---- regularisers


def test_nt_xent_of_identical_and_orthogonal_views():
    n, t = 4, 0.1
    eye = torch.eye(2 * n)
    same = sg.nt_xent(eye[:n], eye[:n])  # the partner is alike, all others are orthogonal
    assert float(same) == pytest.approx(math.log(1 + (2 * n - 2) * math.exp(-1 / t)), rel=1e-3)
    orthogonal = sg.nt_xent(eye[:n], eye[n:])  # nothing is like anything
    assert float(orthogonal) == pytest.approx(math.log(2 * n - 1), rel=1e-6)
    collapsed = sg.nt_xent(torch.ones(n, 5), 3 * torch.ones(n, 5))  # everything is like everything
    assert float(collapsed) == pytest.approx(math.log(2 * n - 1), rel=1e-5)


def test_contrastive_regularisation_trains_the_discriminator_and_its_head(make_config, monkeypatch):
    trainer = sg.train_from_folder(make_config(num_train_steps=1, cl_reg=True))
    head = {id(p) for p in trainer.GAN.CR.parameters()}
    assert head <= {id(p) for p in trainer.D_opt.param_groups[0]["params"]}
    found = {}
    for after in (10**9, 0):  # of the fakes
        monkeypatch.setattr(sg, "CONTRAST_FAKES_AFTER", after)
        trainer.loader = None
        found[after] = float(trainer.accumulate_discriminator(False, 1)["CR"])
        trainer.D_opt.zero_grad()
    assert 0 < found[10**9] < found[0]


def test_controller_reaches_its_target():
    """A discriminator that overfits less the more is augmented: r = 0.9 - 0.6 prob."""
    rng = np.random.default_rng(0)
    ada = diff_augment.AdaptiveAugmentation(0.0, 0.6, volumes=64000)
    seen = []
    for _ in range(2000):
        r = 0.9 - 0.6 * ada.prob
        real = np.where(rng.random(256) < (1 + r) / 2, -1.0, 1.0)  # taken for real is negative
        ada.observe(ada.signs_of(torch.from_numpy(real), torch.zeros(256), sense=-1), 256)
        ada.update()
        seen.append(ada.prob)
    assert np.mean(seen[1000:]) == pytest.approx(0.5, abs=0.05)
    assert max(np.abs(np.diff(seen))) <= 256 / 64000 + 1e-9


@pytest.mark.parametrize("offset", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("options", [{}, {"rel_disc_loss": True}, {"dual_contrast_loss": True}])
def test_what_each_loss_takes_for_real(make_config, options, offset):
    """D's loss falls as real volumes move in the sense that top-k and ADA look at, whatever the offset."""
    trainer = sg.Trainer(make_config(ada_target=0.6, ada_volumes=100, top_k_training=True, **options))
    fake = offset + torch.tensor([0.5, -0.5, 0.25, -0.25])
    apart = [offset + trainer.sense * x * torch.ones(4) for x in (0.5, 1.0)]
    losses = [float(trainer.discriminator_loss(real, fake)) for real in apart]
    assert losses[1] < losses[0] or (offset and not options)  # hinge alone has an absolute place
    kept = sg.most_real(fake, 5, 0.0, 0.25, trainer.sense)
    ahead = [float(trainer.discriminator_loss(apart[0], fake + d * trainer.sense)) for d in (0.0, 0.5)]
    assert ahead[1] >= ahead[0] or (offset and not options)  # fakes that go the same way are harder for D
    assert float(kept) == float(fake[(trainer.sense * fake).argmax()])
    trainer.ada.observe(trainer.ada.signs_of(apart[1], fake, trainer.sense), 4)
    trainer.ada.update()
    behind = offset - trainer.sense * torch.ones(4)
    trainer.ada.observe(trainer.ada.signs_of(behind, fake, trainer.sense), 4)
    trainer.ada.update()  # an update looks at what was seen before the last one
    assert trainer.ada.prob > 0.5  # D tells them apart: more augmentation
    trainer.ada.update()
    assert trainer.ada.prob == pytest.approx(0.5)


def test_codes_stop_learning_after_an_error():
    D = sg.Discriminator(8, 4, 2, 16, fq_layers=(1,), fq_dict_size=4)
    with pytest.raises(RuntimeError), D.learning_codes():
        raise RuntimeError
    assert not D.quantizers["1"].learning


@pytest.mark.parametrize(("target", "end"), [(1.0, 0.0), (0.0, 1.0)])
def test_controller_stays_a_probability(target, end):
    ada = diff_augment.AdaptiveAugmentation(0.5, target, volumes=10)
    for _ in range(20):
        signs = ada.signs_of(torch.tensor([-1.0, -1.0, -1.0, 1.0]), torch.zeros(4), sense=-1)
        ada.observe(signs, 4)
        ada.update()
    assert ada.prob == end


# ---- augmentations


@pytest.mark.parametrize("name", NEW)
def test_augmentation_without_strength_changes_nothing(name):
    function, off = NEW[name]
    extra = {"spacing": SPACING} if name in ("rotation", "scaling") else {}
    x = volumes_of(1)
    torch.testing.assert_close(function(x, np.random.default_rng(0), **extra, **off), x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(function(x, np.random.default_rng(0), **extra), x, atol=1e-3)


@pytest.mark.parametrize("name", NEW)
def test_augmentation_has_gradients_of_first_and_second_order(name):
    """As the gradient penalty needs: of the input, and of that gradient in the weights."""
    x = volumes_of(2).requires_grad_()
    weight = torch.ones((), requires_grad=True)
    y = diff_augment.diff_augment(x, (name,), np.random.default_rng(1), SPACING)
    (gradient,) = torch.autograd.grad((weight * y).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert gradient.abs().sum() > 0 and second > 0
    step = 1e-2 * volumes_of(3)
    again = [
        diff_augment.diff_augment(x.detach() + s * step, (name,), np.random.default_rng(1), SPACING)
        for s in (1, -1)
    ]
    numeric = float((again[0].square().sum() - again[1].square().sum()) / 2)
    assert float((gradient * step).sum()) == pytest.approx(numeric, rel=2e-2, abs=2e-3)


def transformed(volumes, matrices, spacing):
    """Volumes seen through linear maps of millimetres, as rotation and scaling see them."""
    maps = diff_augment.sampling_matrices(matrices, volumes.shape, volumes.device, spacing)
    return diff_augment.sample_volumes(volumes, maps)


def test_resampling_has_its_transposed_as_gradient():
    x, y = volumes_of(4).double(), volumes_of(5).double().requires_grad_()
    matrices = np.stack([np.eye(3) * 1.1, np.eye(3)[[0, 2, 1]]])
    z = transformed(x.float().requires_grad_(), matrices, SPACING)
    grid_x = x.float().requires_grad_()
    (back,) = torch.autograd.grad(transformed(grid_x, matrices, SPACING), grid_x, y.float())
    assert float((z * y).sum()) == pytest.approx(float((x * back).sum()), rel=1e-4)


def test_rotation_is_in_millimetres():
    """A quarter turn about the first axis carries a place 3 mm to the right to one 3 mm to the front."""
    volume = torch.zeros(1, 1, 5, 33, 33)
    volume[0, 0, 2, 16 + 6, 16] = 1  # 6 voxels of 0.5 mm along h
    turn = np.array([[[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]])
    moved = transformed(volume, turn, (1, 0.5, 0.25))
    place = np.unravel_index(int(moved.argmax()), moved.shape)
    assert place[2:4] == (2, 16) and abs(place[4] - 16) == 12  # 12 voxels of 0.25 mm along w


def test_scaling_is_about_the_centre():
    volume = torch.zeros(1, 1, 5, 33, 33)
    volume[0, 0, 2, 16 + 4, 16 - 4] = 1
    larger = transformed(volume, np.eye(3)[None] / 2, (1, 1, 1))
    assert np.unravel_index(int(larger.argmax()), larger.shape)[2:] == (2, 24, 8)


def test_noise_is_that_of_a_magnitude():
    """Without signal, Rayleigh: mean sigma sqrt(pi / 2); far above it, Gaussian of the same deviation."""
    rng = np.random.default_rng(0)
    zeros, ones = torch.zeros(1, 1, 32, 64, 64), 10 * torch.ones(1, 1, 32, 64, 64)

    class Full:  # the largest deviation
        def random(self, n):
            return np.ones(n)

        integers = rng.integers

    assert float(diff_augment.rician_noise(zeros, Full(), 0.5).mean()) == pytest.approx(
        0.5 * math.sqrt(math.pi / 2), rel=0.01
    )
    noisy = diff_augment.rician_noise(ones, Full(), 0.5)
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.02)
    below = diff_augment.rician_noise(zeros - 1, Full(), 0.5)
    assert float(below.mean()) == pytest.approx(-1 + 0.5 * math.sqrt(math.pi / 2), rel=0.01)


def test_blur_keeps_the_sum_and_constant_volumes():
    x = torch.zeros(1, 1, 9, 17, 17)
    x[0, 0, 4, 8, 8] = 1
    y = diff_augment.blur(x, np.random.default_rng(0))
    assert float(y.sum()) == pytest.approx(1, rel=1e-5) and 0 < float(y.max()) < 0.99
    ones = torch.ones(2, 1, 4, 8, 8)
    torch.testing.assert_close(diff_augment.blur(ones, np.random.default_rng(0)), ones)


# ---- classes


def test_class_changes_styles_and_logits_and_only_with_the_flag():
    torch.manual_seed(0)
    settings = {**SIZE, "style_depth": 2}
    plain, conditional = sg.StyleGAN2(**settings), sg.StyleGAN2(**settings, num_classes=3)
    new = set(conditional.state_dict()) - set(plain.state_dict())
    assert new == {"S.embedding.weight", "SE.embedding.weight", *class_tensors()}
    z, x = torch.randn(1, 16).expand(3, -1), volumes_of(0, (1, 1, 4, 8, 8)).expand(3, -1, -1, -1, -1)
    w = conditional.S(z, torch.arange(3))
    logits, _ = conditional.D(x, torch.arange(3))
    assert len({tuple(row.tolist()) for row in w}) == 3 and len(set(logits.tolist())) == 3
    features, _ = conditional.D.features(x)
    base = conditional.D.to_logit(features.flatten(1))[:, 0]
    product = (features.mean((2, 3, 4)) * conditional.D.class_embedding.weight).sum(1)
    torch.testing.assert_close(logits, base + product)


def class_tensors():
    return {f"{D}.class_embedding.weight" for D in ("D", "D_aug.D")}


def test_classes_from_folders_and_from_a_table(tmp_path):
    for n, name in enumerate(["a/1.nii", "a/2.nii.gz", "b/x/3.nii"]):
        write_volume(tmp_path / "data" / name, random_array(n))
    folders = dataset.read_classes("folders", tmp_path / "data")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\na/1.nii,a\na/2.nii.gz,a\nb/x/3.nii,b\nnot_there.nii,c\n", encoding="utf-8")
    from_table = dataset.read_classes(str(table), tmp_path / "data")
    for classes in (folders, from_table):
        assert classes.names == ["a", "b"] and classes.of_volumes.tolist() == [0, 0, 1]
        np.testing.assert_allclose(classes.shares(), [2 / 3, 1 / 3])
    assert "a (2), b (1)" in folders.summary()


BAD_LABELS = {
    "no row": (
        "file,label\nv0.nii.gz,a\nv1.nii.gz,b\n",
        r"4 of 6 volumes .* have no class: add a row to .*v2",
    ),
    "one class": ("file,label\n" + "".join(f"v{n}.nii.gz,a\n" for n in range(6)), "every volume the class a"),
    "columns": ("name,class\n", "has the columns 'name, class', expected file and label"),
    "two labels": (
        "file,label\nv0.nii.gz,a\nv0.nii.gz,b\n",
        r"two rows for v0.nii.gz, with the label 'a' and 'b'",
    ),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_label_tables_are_refused(tmp_path, data, case):
    text, message = BAD_LABELS[case]
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        dataset.read_classes(str(tmp_path / "l.csv"), data)


def test_volumes_beside_the_class_folders_are_refused(data):
    with pytest.raises(ValueError, match="have no class: put it into a folder named after its class: v0"):
        dataset.read_classes("folders", data)


def test_balanced_epochs_show_every_class_equally_often():
    classes = dataset.VolumeClasses(["a", "b", "c"], np.array([0] * 20 + [1] * 3 + [2] * 7), balanced=True)
    np.testing.assert_allclose(classes.shares(), 1 / 3)
    for seed in range(5):
        order = dataset.SeededBatches(30, 5, 0, (0,), classes=classes).order(np.random.default_rng(seed))
        assert np.bincount(classes.of_volumes[order]).tolist() == [10, 10, 10]
        assert len(set(order.tolist())) == 20  # 10 of 20, all 3, all 7
    members = np.array([0, 1, 2, 3, 20, 22, 29])  # the others are held out
    drawn = dataset.SeededBatches(7, 5, 0, (0,), classes=classes, members=members)
    for seed in range(3):
        order = drawn.order(np.random.default_rng(seed))
        assert set(order) <= set(members) and len(order) == 7 and set(classes.of_volumes[order]) == {0, 1, 2}
    without = dataset.SeededBatches(4, 2, 0, (0,), classes=classes, members=members[2:6])  # none of class c
    assert sorted(without.order(np.random.default_rng(0))) == [2, 3, 20, 22]
    assert classes.shares(members[2:6]).tolist() == [0.5, 0.5, 0]
    plain = dataset.SeededBatches(30, 5, 0, (0,)).order(np.random.default_rng(0))
    assert sorted(plain.tolist()) == list(range(30))


def test_classes_are_drawn_by_their_shares():
    drawn = dataset.draw_classes([0.2, 0.5, 0.3], np.random.default_rng(0).random(10000))
    np.testing.assert_allclose(np.bincount(drawn) / 10000, [0.2, 0.5, 0.3], atol=0.02)
    assert dataset.draw_classes([0.5, 0.5], np.array([0, 1 - 1e-16])).tolist() == [0, 1]


@pytest.fixture
def conditional(make_config, label_table):
    """A Trainer after two steps with two classes."""
    return sg.train_from_folder(make_config(num_train_steps=2, labels=str(label_table), save_every=2))


def test_labels_stay_with_their_volumes(conditional):
    volumes, labels = conditional.next_real()
    (indices,) = conditional.step_volumes[-1:]
    assert labels.tolist() == [conditional.classes.of_volumes[i] for i in indices]
    assert volumes.shape[0] == len(labels)


def test_conditional_model_remembers_its_classes(conditional, make_config, label_table):
    model = sg.ModelLoader(checkpoint=conditional.config.models / "model_1.pt", device="cpu")
    assert model.class_names == ["missing", "whole"]
    assert model.class_shares == pytest.approx([2 / 6, 4 / 6])
    z = torch.randn(1, model.latent_dim)
    w = [model.noise_to_styles(z, 0.5, model.labels_of([0], name)) for name in model.class_names]
    assert not torch.equal(*w) and model.truncation_center.shape == (2, model.latent_dim)
    drawn = model.labels_of(range(300))
    assert torch.equal(drawn, model.labels_of(range(300))) and 0.55 < drawn.float().mean() < 0.78
    with pytest.raises(ValueError, match=r"--label both is no class of .*: it has missing, whole"):
        model.labels_of([0], "both")
    with pytest.raises(ValueError, match="has 2 classes"):
        model.noise_to_styles(z)
    with pytest.raises(ValueError, match="has the classes missing, whole, --labels gives none"):
        sg.train_from_folder(make_config(num_train_steps=3))
    label_table.write_text(
        label_table.read_text(encoding="utf-8").replace("missing", "partial"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="has the classes missing, whole, --labels gives partial, whole"):
        sg.train_from_folder(make_config(num_train_steps=3, labels=str(label_table)))


def test_generate_with_a_label(conditional):
    from dataclasses import replace

    folders = [
        sg.generate_volumes(replace(conditional.config, label=label, num_generate=2, use_average=False))
        for label in ("whole", "missing", None)
    ]
    names = ("seed000042_whole", "seed000042_missing", "seed000042")
    volumes = [(folders[0] / f"{name}.nii.gz").read_bytes() for name in names]
    assert len({*folders}) == 1
    assert volumes[0] != volumes[1] and volumes[2] in volumes[:2]
    sg.generate_interpolation(replace(conditional.config, label="whole", interpolation_num_steps=2))
    with pytest.raises(ValueError, match="--label half is no class"):
        sg.generate_volumes(replace(conditional.config, label="half"))


def test_classes_are_learned(tmp_path):
    """300 steps suffice to put a blob to the front or to the back, as the class says."""
    rng = np.random.default_rng(0)
    x, y, _ = np.meshgrid(*map(np.arange, (16, 16, 4)), indexing="ij")
    for n in range(64):
        name, place = (("front", 11.5), ("back", 3.5))[n % 2]
        center = rng.uniform(5, 10), place + rng.uniform(-1, 1)
        blob = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 8) + 0.05 * rng.random((16, 16, 4))
        write_volume(tmp_path / "data" / name / f"{n}.nii", blob.astype(np.float32))
    folders = {name: str(tmp_path / name) for name in ("results_dir", "models_dir")}
    config = sg.TrainConfig(
        **{"image_size": 16, "image_depth": 4, "network_capacity": 4, "fmap_max": 32, **folders},
        **{"batch_size": 8, "gradient_accumulate_every": 1, "num_train_steps": 300, "learning_rate": 1e-3},
        **{"aug_prob": 0.0, "num_image_tiles": 1, "device": "cpu"},
        data=str(tmp_path / "data"),
        labels="folders",
    )
    sg.train_from_folder(config)
    model = sg.ModelLoader(checkpoint=runs.find_checkpoint(config.models), use_average=False, device="cpu")
    places = {}
    for name in model.class_names:
        z, noise = parallel.batch_inputs(range(16), model.latent_dim, model.shape)
        w = model.noise_to_styles(z, labels=model.labels_of(range(16), name))
        volumes = model.styles_to_images_ext_noise(w, noise)[:, 0]  # (16, Z, X, Y)
        places[name] = float((volumes * torch.arange(16)).sum() / volumes.sum())
    assert places["front"] - places["back"] > 3  # 8 voxels apart in the data, less a grey background


MODES = {
    "normal": {},
    "stochastic_variation": {"num_stochastic_variation": 2},
    "interpolation": {"steps": 3},
    "style_mixing": {},
    "truncation": {"steps": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_generator_modes_take_a_label(conditional, tmp_path, mode):
    def run(label, **more):
        settings = {
            "mode": mode,
            "checkpoint": str(conditional.config.models / "model_1.pt"),
            "device": "cpu",
        }
        settings |= {"num_generate": 2, "save_directory": str(tmp_path / "out"), "use_average": False}
        settings |= {"picture_format": "none", **MODES[mode], **more}
        config = generator.GenerateConfig(label=label, **settings)
        generator.generate(config)
        others = ("trained_on", "smoothness")
        return sorted(p for p in config.folder.glob("*.json") if not any(text in p.name for text in others))

    whole = run("whole")
    assert whole and all("_whole" in path.name for path in whole)
    both = run("missing")
    assert len(both) == 2 * len(whole)
    assert len(run(None)) == 3 * len(whole)  # drawn by the seed
    sidecar = next(path for path in both if "_missing" in path.name)
    assert generator.recreate(generator.GenerateConfig(recreate=str(sidecar), device="cpu")) == 0
    if mode == "interpolation":
        frames = run("whole,missing", seeds="7")
        names = [path.name for path in frames if "whole-missing" in path.name]
        assert len(names) == 3
    else:
        with pytest.raises(ValueError, match="which --mode interpolation alone can use"):
            run("whole,missing")
    with pytest.raises(ValueError, match="--label half is no class"):
        run("half")


def test_interpolation_between_classes_ends_at_both(conditional, tmp_path):
    model = sg.ModelLoader(checkpoint=conditional.config.models / "model_1.pt", use_average=False)
    config = generator.GenerateConfig(mode="interpolation", seeds="7", label="whole,missing", steps=3)
    recipes = generator.plan_interpolation(config, model)
    z = parallel.latent_of(7, model.latent_dim)[None]
    for recipe, name in ((recipes[0], "whole"), (recipes[-1], "missing")):
        expected = model.noise_to_styles(z, 1.0, model.labels_of([7], name))[0]
        torch.testing.assert_close(recipe.style_for(model)[0], expected)
    middle = recipes[1].style_for(model)[0]
    ends = [recipes[i].style_for(model)[0] for i in (0, -1)]
    torch.testing.assert_close(middle, (ends[0] + ends[1]) / 2)


# ---- memory


@pytest.mark.parametrize(
    "options",
    [
        {"attn_layers": (1,), "fq_layers": (1, 2), "cl_reg": True, "no_const": True, "ada_target": 0.6},
        {"labels": True, "balance_classes": True},
        {"aug_prob": 1.0, "aug_types": tuple(NEW)},
    ],
    ids=["blocks", "classes", "augmentations"],
)
def test_dry_run_knows_the_options(make_config, label_table, options, capsys):
    if "labels" in options:
        options = {**options, "labels": str(label_table)}
    sg.train_from_folder(make_config(dry_run=True, **options))
    out = capsys.readouterr().out
    assert "peak memory, path length" in out and ("classes: missing (2)" in out) == ("labels" in options)

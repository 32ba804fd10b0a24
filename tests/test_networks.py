"""Networks against the published model: golden values, shapes, parameter counts, and plain formulations."""

import json
from pathlib import Path

from volumetric import layers, parallel

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import stylegan2_pytorch as sg
from tests.golden.fill import fill_state_dict

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(4, 4), (8, 4), (8, 8), (16, 8), (32, 32), (64, 16), (64, 32), (128, 4)]


def golden_network(name):
    """(specification, expected arrays, StyleGAN2 with the weights of the golden values)."""
    spec = json.loads((GOLDEN / f"network_{name}.json").read_text(encoding="utf-8"))
    gan = sg.StyleGAN2(**spec["config"])
    own = gan.state_dict()
    shapes = {
        n: s for n, s in spec["state_dict"].items() if not n.startswith("D_aug.") and not n.endswith(".f")
    }
    state = fill_state_dict(shapes)
    state |= {n: own[n] for n in own if n.endswith(".f")}
    state |= {n: state[n.removeprefix("D_aug.")] for n in own if n.startswith("D_aug.")}
    gan.load_state_dict(state)
    return spec, np.load(GOLDEN / f"network_{name}.npz"), gan


def golden_inputs(spec):
    """z, z2, a full cube of noise, and real volumes, as the original drew them."""
    c, batch = spec["config"], spec["batch"]
    s, z = c["image_size"], c["image_depth"]

    def rng(name):
        return np.random.Generator(np.random.PCG64(spec["seeds"][name]))

    arrays = [rng(n).standard_normal((batch, c["latent_dim"])) for n in ("z", "z2")]
    arrays.append(rng("noise").uniform(size=(batch, s, s, s, 1)))
    arrays.append(rng("real").uniform(size=(batch, 1, z, s, s)))
    return [torch.from_numpy(a.astype(np.float32)) for a in arrays]


def compare_golden(name, tolerance, device="cpu"):
    """Assert that volumes, logits and penalty of the golden weights are the golden ones."""
    spec, expected, gan = golden_network(name)
    gan = gan.to(device)
    z, z2, noise, real = (t.to(device) for t in golden_inputs(spec))
    layers, stride = gan.G.num_layers, spec["stride"]
    w, w2 = gan.SE(z), gan.SE(z2)
    found = {
        "image_ema": gan.GE(sg.same_style(w, layers), noise),
        "image_mixed": gan.GE(sg.mix_styles(w, w2, layers, 2), noise),
        "image_train": gan.G(sg.same_style(gan.S(z), layers), noise),
    }
    found = {n: v[:, :, ::stride, ::stride, ::stride] for n, v in found.items()}
    real.requires_grad_()
    logits, quantize_loss = gan.D(real)
    found |= {"w": w, "logits": logits, "gradient_penalty": sg.gradient_penalty(real, logits)}
    assert set(found) == set(expected.files) and quantize_loss.item() == 0
    for key, value in found.items():
        scale = max(1.0, np.ptp(expected[key]) if expected[key].ndim else abs(expected[key]))
        assert np.abs(value.detach().cpu().numpy() - expected[key]).max() < tolerance * scale, key


@pytest.mark.parametrize("name", ["32x32x32", "64x64x32"])
def test_golden_values(name):
    compare_golden(name, 1e-4)


@pytest.mark.parametrize("name", ["32x32x32", "64x64x32"])
def test_state_dict_has_the_originals_names_and_shapes(name):
    spec, _, gan = golden_network(name)
    assert {n: list(t.shape) for n, t in gan.state_dict().items()} == spec["state_dict"]


@pytest.mark.parametrize("name", ["32x32x32", "64x64x32"])
def test_original_checkpoint_loads_and_generates_the_same(name, tmp_path, capsys):
    spec, expected, gan = golden_network(name)
    state = {
        f"module.{n}": t for n, t in gan.state_dict().items()
    }  # as a parallel run of the original saves them
    (tmp_path / "models" / "orig").mkdir(parents=True)
    torch.save({"GAN": state}, tmp_path / "models" / "orig" / "model_7.pt")
    config = {"image_size": 0, "network_capacity": 0, "transparent": False, "fq_layers": [], "lr_mlp": 0.1}
    (tmp_path / "models" / "orig" / ".config.json").write_text(json.dumps(config), encoding="utf-8")
    model = sg.ModelLoader(base_dir=tmp_path, name="orig", device="cpu")
    assert "does not state its depth: taken as 32" in capsys.readouterr().out
    z, _, noise, _ = golden_inputs(spec)
    stride = spec["stride"]
    volumes = model.styles_to_images_ext_noise(model.noise_to_styles(z), noise)[
        :, :, ::stride, ::stride, ::stride
    ]
    np.testing.assert_allclose(volumes, expected["image_ema"].clip(0, 1), atol=1e-4)


def test_settings_follow_from_an_originals_tensors(tmp_path):
    for settings in ({"network_capacity": 2, "fmap_max": 16}, {"network_capacity": 4, "fmap_max": 4}):
        gan = sg.StyleGAN2(32, 32, latent_dim=16, style_depth=3, **settings)
        found = sg.network_settings({"GAN": gan.state_dict()}, tmp_path / "model_1.pt")
        assert found["style_depth"] == 3 and found["latent_dim"] == 16 and found["image_size"] == 32
        again = sg.StyleGAN2(**found)
        again.load_state_dict(gan.state_dict())
    assert (
        sg.network_settings({"GAN": sg.StyleGAN2(256, 4, 8, 1, 1, 4).state_dict()}, "m.pt")["image_depth"]
        == 4
    )


@pytest.mark.parametrize(("size", "depth"), SIZES)
def test_shapes(size, depth):
    gan = sg.StyleGAN2(size, depth, latent_dim=8, style_depth=2, network_capacity=1, fmap_max=4)
    styles = sg.same_style(gan.S(torch.randn(2, 8)), gan.G.num_layers)
    volumes = gan.G(styles, torch.rand(2, depth, size, size, 1))
    assert volumes.shape == (2, 1, depth, size, size)
    assert gan.D(volumes)[0].shape == (2,)
    assert gan.G.num_layers == np.log2(size) - 1


def test_growth_schedule_of_the_published_size():
    assert sg.growth_schedule(128, 32) == [(1, 1, 1)] + 3 * [(2, 2, 2)] + 2 * [(1, 2, 2)]
    assert sg.shrink_schedule(128, 32) == 4 * [(2, 2, 2)] + 2 * [(1, 2, 2)]


@pytest.mark.parametrize(("size", "depth"), [(48, 16), (64, 128), (64, 2), (64, 12)])
def test_impossible_sizes_are_refused(size, depth):
    with pytest.raises(ValueError, match="--image_"):
        sg.growth_schedule(size, depth)


@pytest.mark.parametrize(
    ("capacity", "fmap_max", "millions"),
    [(8, 256, (11.9, 22.0)), (8, 512, (30.1, 66.7)), (8, 1024, (30.1, 181.0)), (16, 1024, (116.9, 266.9))],
    ids=["small", "medium_v1", "medium_v2", "large"],
)
def test_parameter_counts_of_the_published_models(capacity, fmap_max, millions):
    with torch.device("meta"):
        gan = sg.StyleGAN2(128, 32, network_capacity=capacity, fmap_max=fmap_max)
    assert (
        round(layers.count_parameters(gan.G) / 1e6, 1),
        round(layers.count_parameters(gan.D) / 1e6, 1),
    ) == millions
    assert round(layers.count_parameters(gan.S) / 1e6, 1) == 2.1


def one_kernel_per_sample(layer, x, style, demodulate):
    """The modulated convolution of `layer`'s weight, with a kernel for every sample."""
    weight = layer.weight[None] * (1 + style)[:, None, :, None, None, None]  # (B, C_out, C_in, k, k, k)
    if demodulate:
        weight = weight / (weight.square().sum(dim=(2, 3, 4, 5), keepdim=True) + 1e-8).sqrt()
    padding = weight.shape[-1] // 2
    pairs = zip(x, weight, strict=True)
    return torch.cat([F.conv3d(one[None], kernel, padding=padding) for one, kernel in pairs])


@pytest.mark.parametrize("grad", [True, False])
def test_modulated_convolutions_equal_one_kernel_per_sample(grad):
    x, style = torch.randn(2, 3, 4, 6, 5), torch.randn(2, 3)
    for layer, demodulate in ((sg.Conv3DMod(3, 5, kernel_size=3), True), (sg.ModulatedSum(3), False)):
        expected = one_kernel_per_sample(layer, x, style, demodulate)
        with torch.set_grad_enabled(grad):
            found = layer(x.clone(), style)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_blur_equals_27_taps_and_is_its_own_gradient():
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    f = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = torch.einsum("a,b,c->abc", f, f, f) / 64
    padded = F.pad(x, 6 * [1], mode="replicate")
    expected = F.conv3d(padded, kernel.expand(3, 1, 3, 3, 3), groups=3)
    torch.testing.assert_close(sg.Blur()(x), expected)
    small = torch.randn(1, 1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layers.Smoothing.apply, small)
    assert torch.autograd.gradgradcheck(layers.Smoothing.apply, small)


CONVOLUTIONS = [(1, 3, 1, 3), ((2, 2, 2), 3, 1, 3), ((1, 2, 2), 1, 0, 2), (1, 3, 1, 1)]


@pytest.mark.parametrize(("stride", "kernel", "padding", "channels"), CONVOLUTIONS)
def test_convolutions_have_gradients_of_any_order(stride, kernel, padding, channels):
    double = {"dtype": torch.float64, "requires_grad": True}
    x, bias = torch.randn(2, channels, 2, 4, 4, **double), torch.randn(2, **double)
    weight = torch.randn(2, channels, *3 * [kernel], **double)

    def convolve(*inputs):  # as on a GPU
        return layers.Convolution.apply(*inputs, stride, padding)

    torch.testing.assert_close(convolve(x, weight, bias), F.conv3d(x, weight, bias, stride, padding))
    assert torch.autograd.gradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (x, weight, bias))


def test_activations_keep_their_channels_last():
    block = layers.channels_last(sg.DiscriminatorBlock(1, 4, stride=(1, 2, 2)))
    x = torch.randn(2, 1, 4, 8, 8, requires_grad=True)
    ways = [torch.enable_grad()]
    if parallel.cpu_has_bfloat16():  # else PyTorch takes a convolution of its own, which has no channels last
        ways.append(torch.autocast("cpu", torch.bfloat16))
    for way in ways:
        with way:
            for y in (block.net(x), block(x)):
                assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2)])
def test_products_with_matrices_smooth_and_enlarge(factors):
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    kind = (torch.float64, torch.device("cpu"))
    smoothing = [layers.smoothing_matrix(size, *kind) for size in x.shape[2:]]
    doubling = [layers.doubling_matrix(*size, *kind) for size in zip(x.shape[2:], factors, strict=True)]
    torch.testing.assert_close(layers.AlongAxes.apply(x, *smoothing), layers.smooth(x))
    torch.testing.assert_close(layers.AlongAxes.apply(x, *doubling), layers.Upsampling(factors)(x))
    small = torch.randn(1, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    matrices = [layers.doubling_matrix(size, 2, *kind) for size in small.shape[2:]]

    def enlarged(x):
        return layers.AlongAxes.apply(x, *matrices)

    assert torch.autograd.gradcheck(enlarged, small) and torch.autograd.gradgradcheck(enlarged, small)


def test_forward_passes_for_a_gpu_keep_type_device_and_layout():
    """Fake tensors have the type, device and strides of a GPU's, and no GPU is needed."""
    with FakeTensorMode():
        with torch.device("cuda"):
            gan = layers.channels_last(sg.StyleGAN2(16, 8, network_capacity=2, fmap_max=16))
            z, noise = torch.randn(2, 512), torch.rand(2, 8, 16, 16, 1)
        seen = []
        for module in gan.modules():
            if isinstance(module, layers.Conv3d | sg.Conv3DMod | layers.Upsampling | sg.Blur):
                module.register_forward_hook(lambda *call: seen.append(call[2]))
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            volumes = gan.G(sg.same_style(gan.S(z), gan.G.num_layers), noise)
            logits, _ = gan.D(volumes)
        finally:
            torch.set_autocast_enabled("cuda", False)
        assert volumes.shape == (2, 1, 8, 16, 16) and logits.shape == (2,)
        assert len(seen) > 30
        for y in (*seen, volumes, logits):
            assert y.device.type == "cuda" and y.dtype == torch.float16
            assert y.ndim < 5 or layers.channels_inside(y).stride()[1] == 1
            assert y.ndim < 5 or y.shape[1] == 1 or y.is_contiguous(memory_format=torch.channels_last_3d)
    for cached in (layers.smoothing_matrix, layers.doubling_matrix):
        cached.cache_clear()  # they would be fake


def test_noise_equals_a_linear_layer_on_the_last_axis(monkeypatch):
    x, noise, layer = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 4, 5, 6, 1), nn.Linear(1, 3)
    expected = F.leaky_relu(x + layer(noise).permute(0, 4, 1, 2, 3), 0.2)
    flat = noise.flatten(1, 3)
    flat = torch.cat([flat, torch.ones_like(flat)], dim=-1)
    torch.testing.assert_close(layers.activate_noisily(x.clone(), flat, layer), expected)
    monkeypatch.setattr(layers, "on_cpu", lambda x: False)
    torch.testing.assert_close(layers.activate_noisily(x.clone(), flat, layer), expected)


def test_activations_and_sums_of_squares_have_gradients_of_any_order():
    double = {"dtype": torch.float64, "requires_grad": True}
    x, factors, kernel = (
        torch.randn(2, 3, 2, 3, 2, **double),
        torch.randn(2, 3, **double),
        torch.randn(2, 3, 2, 1, 3, **double),
    )
    noise = torch.rand(2, 12, 2, dtype=torch.float64)

    def noisily(x, factors):
        return layers.NoisyActivation.apply(layers.channels_inside(x * 1), noise, factors)

    for function, inputs in (
        (lambda x: layers.LeakyReLU()(x * 1), (x,)),
        (noisily, (x, factors)),
        (layers.SquareSum.apply, (kernel,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_a_penalty_does_not_go_back_through_what_was_computed_forward():
    """The gradient of D's gradient depends on x by the signs of the activations alone."""
    net = nn.Sequential(
        layers.Conv3d(1, 2, 3, padding=1), layers.LeakyReLU(), sg.Blur(), layers.Conv3d(2, 1, 3)
    )
    x = torch.rand(1, 1, 4, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert net[0].weight.grad.any() and net[0].bias.grad is None


def test_only_the_first_slices_of_a_noise_cube_are_read():
    gan = sg.StyleGAN2(16, 4, latent_dim=8, style_depth=1, network_capacity=1, fmap_max=4)
    for block in gan.G.blocks:
        nn.init.normal_(block.to_noise1.weight)
    styles, cube = torch.randn(1, gan.G.num_layers, 8), torch.rand(1, 16, 16, 16, 1)
    assert torch.equal(gan.G(styles, cube), gan.G(styles, cube[:, :4].clone()))


def test_initial_weights():
    torch.manual_seed(0)
    gan = sg.StyleGAN2(16, 8, network_capacity=8, fmap_max=64)
    block = gan.G.blocks[0]
    for layer in (block.to_noise1, block.to_noise2):
        assert not layer.weight.any() and not layer.bias.any()
    for weight in (gan.D.blocks[1].net[2].weight, block.conv1.weight, block.to_style1.weight):
        fan_in = weight[0].numel()
        assert abs(weight.std().item() * (fan_in / 2) ** 0.5 - 1) < 0.05  # Kaiming: variance 2 / fan_in
    assert abs(gan.S.net[0].weight.std().item() - 1) < 0.01 and not gan.S.net[0].bias.any()
    for pair in gan.averaged():
        for average, current in zip(*(module.parameters() for module in pair), strict=True):
            assert torch.equal(average, current)


def test_bfloat16_gradients_of_the_discriminator_agree_with_float32():
    torch.manual_seed(0)
    D = sg.Discriminator(16, 4, network_capacity=4, fmap_max=16)
    x = torch.rand(2, 1, 4, 16, 16)
    gradients = []
    for enabled in (False, True):
        D.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits, _ = D(x)
        logits.float().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in D.named_parameters()})
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() < 0.1 * exact.norm() + 1e-3, name


def test_float16_survives_large_styles():
    conv = sg.Conv3DMod(4, 4, kernel_size=3).half()
    x, style = torch.ones(1, 4, 4, 4, 4, dtype=torch.float16), torch.full((1, 4), 6e4)
    assert conv(x, style).isfinite().all()


def test_module_imports_without_side_effects(tmp_path, monkeypatch, capsys):
    import importlib

    monkeypatch.chdir(tmp_path)
    importlib.reload(importlib.import_module("stylegan2_pytorch"))
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())

"""The README's pictures, and the script that makes them."""

from volumetric.parallel import volume_inputs
from volumetric.pictures import captioned, enlarged, marked

import numpy as np
from PIL import Image, ImageSequence

from tests.benchmarks import pictures
from tests.conftest import ROOT

SHOWN = ROOT / "docs" / "pictures"


def frames_of(path):
    return [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(Image.open(path))]


def test_the_pictures_that_the_readme_shows_are_large_and_light():
    assert Image.open(SHOWN / "shipped.png").size == (1096, 590)  # 8 panels of 136 pixels and their gaps
    for name in ("interpolation.gif", "stochastic.gif"):
        frames = frames_of(SHOWN / name)
        assert len(frames) >= 24 and frames[0].shape == (270, 256)
        assert (SHOWN / name).stat().st_size < 1.5e6


def test_the_script_makes_all_three_of_any_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "FRAMES_OF_WAY", 2)
    monkeypatch.setattr(pictures, "FRAMES_OF_NOISE", 4)
    pictures.main(["--output", str(tmp_path), "--device", "cpu", "--checkpoint", str(pictures.SHIPPED)])
    assert "stochastic.gif: 0." in capsys.readouterr().out
    new = np.asarray(Image.open(tmp_path / "shipped.png"))
    there = np.asarray(Image.open(SHOWN / "shipped.png"))
    assert new.shape == there.shape
    assert np.abs(new[:273].astype(float) - there[:273]).mean() < 0.5  # the phantoms, whichever the model
    way, noises = (frames_of(tmp_path / f"{name}.gif") for name in ("interpolation", "stochastic"))
    assert len(way) == 6 and len(noises) == 4
    step = [
        float(np.abs(one.astype(float) - other)[:256].mean())
        for one, other in zip(noises, noises[1:] + noises[:1], strict=True)
    ]
    assert min(step) > 0 and max(step) < np.abs(way[0].astype(float) - way[3])[:256].mean()


def test_the_noise_of_a_frame_has_the_deviation_of_the_generators_own(monkeypatch):
    """On every place of the circle; the first is the seed's own."""
    model = pictures.ModelLoader(checkpoint=pictures.SHIPPED, device="cpu")
    seen = []
    monkeypatch.setattr(model, "render", lambda styles, noise: seen.append(noise) or np.zeros(1))
    monkeypatch.setattr(pictures, "frame", lambda model, styles, noise, caption: model.render(styles, noise))
    pictures.noises(model)
    assert len(seen) == pictures.FRAMES_OF_NOISE
    own = volume_inputs(pictures.STYLE, model.latent_dim, model.shape)[1]
    np.testing.assert_allclose(seen[0][0], own, atol=1e-6)
    np.testing.assert_allclose([float(noise.std()) for noise in seen], 12**-0.5, rtol=0.02)


def test_an_enlarged_view_keeps_its_pixels_square_and_says_what_it_is():
    view = np.zeros((64, 96), np.uint8)
    shown = enlarged(view, "SYNTHETIC")
    assert shown.shape == (256 + 14, 384) and shown[256:].max() > 200
    assert enlarged(np.zeros((300, 300), np.uint8), "")[:300].shape == (300, 300)
    left, right = shown[:256, :20], shown[:256, -20:]
    assert min(left.max(), right.max()) > 200 and shown[:256, 20:-20].max() == 0  # the sides alone
    assert marked(view, 1, (96, 64)).max() == 0  # and none where none are asked for
    assert captioned(view, "text", 20).shape == (64 + 24, 96)

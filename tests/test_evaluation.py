"""Evaluation: distances with known answers, the protocol of the features, the program as a user meets it."""

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

from volumetric import files

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats

from MedicalNet import anatomy, comparing, distances, evaluation, extractors, measuring, volumes
from tests.conftest import random_array, run_script, write_volume

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
NUMBERS = (
    "FD-random",
    "KD-random",
    "FD-random-volume",
    "AUC-PRD-random",
    "precision-random",
    "recall-random",
)
NUMBERS += ("density-random", "coverage-random", "nearest-real-random", "MS-SSIM-real", "MS-SSIM-generated")
NUMBERS += tuple(f"W1-{measure}" for measure in anatomy.MEASURES)
NUMBERS += ("FD-random-inf", "FD-random-volume-inf", "KD-random-volume", "Vendi-real-random")
NUMBERS += ("Vendi-generated-random", "energy-random", "sliced-W1-random", "energy-placed-random")


def normal(seed, *shape):
    """Standard-normal float64 array."""
    return np.random.default_rng(seed).standard_normal(shape)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Distances                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_frechet_distance_of_known_gaussians():
    mu = np.zeros(3), np.array([1.0, 2.0, 0.0])
    sigma = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 1.0, 0.0])  # (1 - 3)^2 + (2 - 1)^2 + 0, and |mu|^2 = 5
    assert evaluation.frechet_distance(mu[0], sigma[0], mu[1], sigma[1]) == pytest.approx(10)


def test_golden_frechet_distance_and_precision_recall_curve():
    a, b = GOLDEN["frechet_a"], GOLDEN["frechet_b"]
    by_covariance = evaluation.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert by_covariance == pytest.approx(float(GOLDEN["frechet"]), rel=1e-6)
    assert distances.Frechet(a[:, None], b[:, None]).exact() == pytest.approx(by_covariance, rel=1e-9)
    precision, recall = evaluation.prd_curve(GOLDEN["prd_eval"], GOLDEN["prd_ref"])
    np.testing.assert_allclose(precision, GOLDEN["prd_precision"], atol=1e-6)
    np.testing.assert_allclose(recall, GOLDEN["prd_recall"], atol=1e-6)


def test_golden_area_under_the_precision_recall_curve():
    area = evaluation.prd_area(GOLDEN["prd_precision"], GOLDEN["prd_recall"])
    # Equal recalls are left in the order of numpy's sort, which depends on the processor.
    same_sort = "AVX512_SKX" in np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    same_sort |= "X86_V4" in np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    assert area == pytest.approx(float(GOLDEN["prd_auc"]), abs=1e-6 if same_sort else 1e-4)


def test_frechet_distance_equals_sqrtm_on_full_rank_and_is_finite_below():
    a, b = normal(0, 500, 40) @ normal(1, 40, 40), normal(2, 400, 40) @ normal(3, 40, 40) + 1
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(s1 @ s2).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root)
    assert evaluation.frechet_distance(a.mean(0), s1, b.mean(0), s2) == pytest.approx(expected, rel=1e-6)
    few = normal(4, 5, 40), normal(5, 6, 40)  # rank 4 and 5 of 40
    low = evaluation.frechet_distance(few[0].mean(0), np.cov(few[0].T), few[1].mean(0), np.cov(few[1].T))
    assert low == pytest.approx(distances.Frechet(*(f[:, None] for f in few)).exact(), rel=1e-6)
    same = evaluation.frechet_distance(few[0].mean(0), np.cov(few[0].T), few[0].mean(0), np.cov(few[0].T))
    assert same == pytest.approx(0, abs=1e-6)


def test_frechet_distance_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        evaluation.frechet_distance([np.nan], [[1]], [0], [[1]])
    with pytest.raises(ValueError, match="expected equal sizes"):
        evaluation.frechet_distance([0], [[1]], [0, 0], np.eye(2))


def test_resample_of_volumes_equals_the_set_with_copies():
    real, generated = normal(0, 8, 3, 10), normal(1, 9, 3, 10) + 0.3
    counts = np.array([2, 0, 1, 1, 3, 0, 1, 0.0]), np.array([1, 1, 0, 2, 2, 0, 1, 1, 1.0])
    copies = [
        f[np.repeat(np.arange(len(f)), c.astype(int))] for f, c in zip((real, generated), counts, strict=True)
    ]
    assert distances.Frechet(real, generated)(*counts) == pytest.approx(distances.Frechet(*copies).exact())
    for found, expected in zip(
        distances.OfVolumes(real)(counts[0]), distances.moments(real, counts[0]), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    w1 = [[np.ravel(v) for v in f] for f in (real, generated)], [[np.ravel(v) for v in f] for f in copies]
    assert distances.Wasserstein(*w1[0])(*counts) == pytest.approx(distances.Wasserstein(*w1[1]).exact())


def test_kernel_distance_equals_the_definition():
    real, generated = normal(0, 4, 2, 6), normal(1, 5, 2, 6) + 0.5
    kernel = lambda x, y: (x @ y / 6 + 1) ** 3  # noqa: E731
    within = [
        np.mean(
            [kernel(x, y) for i in range(len(f)) for j in range(len(f)) if i != j for x in f[i] for y in f[j]]
        )
        for f in (real, generated)
    ]
    across = np.mean([kernel(x, y) for x in real.reshape(-1, 6) for y in generated.reshape(-1, 6)])
    found = distances.Kernel(real, generated)
    assert found.exact() == pytest.approx(sum(within) - 2 * across)
    assert found.standard_deviation(np.random.default_rng(0)) > 0


def test_kernel_distance_of_equal_distributions_is_unbiased():
    values = [
        distances.Kernel(normal(2 * n, 20, 1, 4), normal(2 * n + 1, 20, 1, 4)).exact() for n in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)


def test_precision_recall_density_and_coverage_equal_the_definition():
    real, generated = normal(0, 20, 3), normal(1, 15, 3) + 0.7
    norm = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2)  # noqa: E731
    radius = np.sort(norm(real, real), axis=1)[:, distances.NEAREST]  # column 0 is the distance to itself
    radius_generated = np.sort(norm(generated, generated), axis=1)[:, distances.NEAREST]
    between = norm(real, generated)
    inside = between < radius[:, None]
    expected = {
        "precision": inside.any(0).mean(),
        "recall": (between < radius_generated).any(1).mean(),
        "density": inside.sum() / (distances.NEAREST * 15),
        "coverage": inside.any(1).mean(),
    }
    neighbours = distances.Neighbours(real, generated)
    for name, value in expected.items():
        assert distances.OfNeighbours(neighbours, name, (0, 1)).exact() == pytest.approx(value), name


def test_nearest_ratio_tells_copies():
    real = normal(0, 12, 3)
    copied = distances.OfNeighbours(distances.Neighbours(real, real), "nearest_ratio", (0, 1))
    fresh = distances.OfNeighbours(distances.Neighbours(real, normal(1, 200, 3)), "nearest_ratio", (0, 1))
    assert copied.exact() == 0 and 0.5 < fresh.exact() < 2


def test_reach_counts_a_neighbour_as_often_as_it_is_there():
    points = np.array([0.0, 1, 3, 7])[:, None]
    away = distances.Neighbours(points, points).rr
    assert distances.reach(away, np.array([1, 1, 4, 1.0]))[0] == 3  # 1, then 3 four times: the fifth is 3
    assert distances.reach(away, np.array([1, 1, 3, 1.0]))[0] == 7


def test_wasserstein_distance_equals_scipy():
    a, b = normal(0, 30), normal(1, 20) + 1
    found = distances.Wasserstein([a[:10], a[10:]], [b]).exact()
    assert found == pytest.approx(stats.wasserstein_distance(a, b))


def test_spread_is_that_of_the_resamples_about_the_value():
    low, high = distances.spread(5.0, np.linspace(6, 8, 1001), (0, np.inf))  # mean 7: moved down by 2
    assert (low, high) == pytest.approx((5 - 0.95, 5 + 0.95))
    assert distances.spread(0.5, np.linspace(6, 8, 1001), (0, np.inf))[0] == 0
    assert distances.spread(np.nan, np.ones(3)) is None and distances.spread(1.0, np.array([np.nan])) is None


def test_interval_of_a_mean_covers_it_at_its_rate():
    covered = []
    for n in range(200):
        rng = np.random.default_rng(n)
        values = rng.normal(0.2, 0.1, 40)
        pairs = np.stack([np.arange(40), np.arange(40)], axis=1)
        mean = distances.PairMean(values, pairs, True, (40, 40))
        low, high = mean.interval()
        covered.append(low < 0.2 < high)
    assert 0.88 < np.mean(covered) < 0.99


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Features                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Recorder(torch.nn.Module):
    """A network that keeps what it is given and returns as many features."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.seen = x.clone()
        return torch.zeros(len(x), 2048)


@pytest.fixture(scope="module")
def plain_inception():
    """torch-fidelity's own extractor, with our random weights."""
    from tests.benchmarks.evaluation import plain_inception

    return plain_inception()


def test_slices_are_scaled_one_by_one_in_every_plane(monkeypatch):
    monkeypatch.setattr(extractors, "enlarge", lambda slices: slices)
    array = random_array(0, (8, 6, 4)) * 7 + 3
    array[:, :, 2] = 5  # constant
    network = Recorder()
    extractors.SliceFeatures(network, "random", "axial")(array, np.eye(4))
    pixels = network.seen[:, 0] * 128 + 128
    assert pixels.shape == (4, 8, 6)
    for z, found in enumerate(pixels):
        one = array[..., z]
        expected = np.round(255 * (one - one.min()) / max(np.ptp(one), 1e-9))
        np.testing.assert_allclose(found, expected, atol=1e-3)
    extractors.SliceFeatures(network, "random", "sagittal")(array, np.eye(4))
    chosen = array[[1, 3, 5, 7]]  # four of eight, evenly spread
    expected = [np.round(255 * (one - one.min()) / np.ptp(one)) for one in chosen]
    np.testing.assert_allclose(network.seen[:, 0] * 128 + 128, expected, atol=1e-3)


def test_slice_features_equal_torch_fidelity(plain_inception):
    array = random_array(1, (40, 32, 2))
    found = extractors.SliceFeatures(extractors.build_inception(None, torch.device("cpu")), "random", "axial")
    low, high = array.min((0, 1)), array.max((0, 1))
    pixels = torch.from_numpy(np.round((array - low) / (high - low) * 255)).to(torch.uint8)
    with torch.inference_mode():
        expected = plain_inception(pixels.permute(2, 0, 1)[:, None].expand(-1, 3, -1, -1))[0]
    np.testing.assert_allclose(
        found(array, np.eye(4))["features"], expected, atol=1e-4 * float(expected.max())
    )


def test_mixed_precision_is_close_to_float32():
    array = random_array(1, (32, 32, 2))
    full, mixed = (
        extractors.SliceFeatures(extractors.build_inception(None, torch.device("cpu"), m), "", "axial")
        for m in (False, True)
    )
    assert "float32" in full.protocol and "bfloat16" in mixed.protocol
    one, other = (f(array, np.eye(4))["features"] for f in (full, mixed))
    assert 0 < np.linalg.norm(one - other) / np.linalg.norm(one) < 0.02


def test_volumes_are_standardised_by_their_voxels_above_zero():
    array = random_array(0) + 1
    array[:4] = 0
    found = extractors.standardized(array)
    inside, noise = found[4:], found[:4]
    assert inside.mean() == pytest.approx(0, abs=1e-5) and inside.std() == pytest.approx(1, abs=1e-5)
    assert abs(noise.mean()) < 0.3 and 0.7 < noise.std() < 1.3
    assert np.array_equal(found, extractors.standardized(array.copy()))
    assert not np.array_equal(noise, extractors.standardized(array * 2)[:4])
    for value in (0, 3):  # a generator's first volumes can be constant
        flat = extractors.standardized(np.full((4, 4, 4), value, np.float32))
        assert np.isfinite(flat).all() and (flat.std() > 0.5) == (value == 0)


def test_ms_ssim_settings_fit_the_volume():
    assert measuring.ms_ssim_settings((128, 128, 32))[:2] == (1.5, 11)
    assert len(measuring.ms_ssim_settings((128, 128, 32))[2]) == 3
    assert sum(measuring.ms_ssim_settings((64, 64, 16))[2]) == pytest.approx(1)
    volume = volumes.VolumeInMemory("a", random_array(0), np.eye(4))
    other = volumes.VolumeInMemory("b", random_array(1), np.eye(4))
    cpu, cache = torch.device("cpu"), extractors.FeatureCache(None)
    assert measuring.similarity(volume, volume, cpu, cache) == pytest.approx(1)
    assert measuring.similarity(volume, other, cpu, cache) < 0.5
    black = volumes.VolumeInMemory("c", np.zeros((8, 8, 4), np.float32), np.eye(4))
    assert 0 <= measuring.similarity(volume, black, cpu, cache) < 0.5


def test_the_similarity_of_volumes_is_kept_for_each_protocol(tmp_path):
    paths = [write_volume(tmp_path / f"{n}.nii", random_array(n, (16, 16, 8))[::-1]) for n in range(6)]
    cache, cpu = extractors.FeatureCache(tmp_path / "cache"), torch.device("cpu")
    for number, protocol in enumerate(volumes.PROTOCOLS, start=1):
        one, other, *_ = volumes.list_volumes(tmp_path, "--real", cache, protocol, fewest=len(paths))
        measuring.similarity(one, other, cpu, cache)
        assert len(list(cache.folder.rglob("*.npz"))) == len(paths) + number


def test_the_cache_knows_by_everything(tmp_path):
    cache = extractors.FeatureCache(tmp_path)
    cache.put(["a", 1], {"x": np.arange(3)})
    assert cache.get(["a", 1])["x"].tolist() == [0, 1, 2]
    assert cache.get(["a", 2]) is None
    assert extractors.FeatureCache(tmp_path, renew=True).get(["a", 1]) is None
    cache.path(["a", 1]).write_bytes(b"damaged")
    assert cache.get(["a", 1]) is None


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Anatomy                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def tubes(seed=0, branch=True):
    """A bright tube of radius 2 mm along y, with a second one branching off to +x; 0.5 mm voxels."""
    x, y, z = np.meshgrid(*(np.arange(n) * 0.5 for n in (80, 80, 40)), indexing="ij")
    mask = np.hypot(x - 20, z - 10) < 2
    if branch:
        mask |= (np.hypot(y - 20, z - 10) < 2) & (x > 20)
    mask &= (x > 2) & (y > 2) & (x < 38) & (y < 38)
    noise = np.random.default_rng(seed).normal(0, 5, mask.shape)
    return (100 + 100 * mask + noise).astype(np.float32), mask


def test_anatomy_of_tubes():
    array, mask = tubes()
    found = anatomy.measure_anatomy(array, np.diag([0.5, 0.5, 0.5, 1]))
    true_ml = mask.sum() * 0.125 / 1000
    assert found["vessel-volume-ml"][0] == pytest.approx(true_ml, rel=0.1)
    assert found["components"][0] == 1
    assert found["branches"][0] == 3
    assert found["centreline-mm"][0] == pytest.approx(36 + 18, rel=0.15)
    assert np.median(found["radius-mm"]) == pytest.approx(2, abs=0.4)
    assert found["branch-length-mm"].sum() == pytest.approx(found["centreline-mm"][0], rel=0.1)


def test_asymmetry_is_left_minus_right():
    array, _ = tubes()  # the branch lies at high x
    right_is_high = anatomy.measure_anatomy(array, np.diag([0.5, 0.5, 0.5, 1]))["asymmetry"][0]
    left_is_high = anatomy.measure_anatomy(array, np.diag([-0.5, 0.5, 0.5, 1]))["asymmetry"][0]
    mirrored = anatomy.measure_anatomy(array[::-1], np.diag([0.5, 0.5, 0.5, 1]))["asymmetry"][0]
    swapped = np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    turned = anatomy.measure_anatomy(array.swapaxes(0, 1).copy(), swapped)["asymmetry"][0]
    assert right_is_high < 0 < left_is_high
    assert left_is_high == pytest.approx(mirrored, abs=0.02) and turned == pytest.approx(
        right_is_high, abs=0.02
    )


def test_no_vessels_is_a_measurement_too():
    noise = np.random.default_rng(0).normal(100, 5, (40, 40, 20)).astype(np.float32)
    for array in (noise, np.ones((8, 8, 4), np.float32)):
        found = anatomy.measure_anatomy(array, np.eye(4))
        of_vessels = ("asymmetry", "radius-mm", "branch-length-mm")
        assert {name: v.tolist() for name, v in found.items()} == {
            name: [] if name in of_vessels else [0.0] for name in anatomy.MEASURES
        }


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Weights                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@pytest.fixture
def published(tmp_path, monkeypatch):
    """MedicalNet weights published in a folder, in place of the network."""
    torch.save({"state_dict": extractors.build_medicalnet(None, "cpu").state_dict()}, tmp_path / "w.pth")
    weights = replace(
        extractors.PUBLISHED["medicalnet"],
        url=(tmp_path / "w.pth").as_uri(),
        sha256=extractors.file_digest(tmp_path / "w.pth"),
    )
    monkeypatch.setitem(extractors.PUBLISHED, "medicalnet", weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return weights


def test_weights_are_downloaded_once_and_verified(published, capsys):
    path, digest = extractors.find_weights("medicalnet")
    assert path == published.target and digest == published.sha256
    assert "Downloading" in capsys.readouterr().out
    Path(published.url.removeprefix("file://")).unlink()
    assert extractors.find_weights("medicalnet")[0] == path
    assert capsys.readouterr().out == ""
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"remove the file, and it will be downloaded again"):
        extractors.find_weights("medicalnet")


def test_a_download_of_another_hash_leaves_nothing(published, monkeypatch):
    monkeypatch.setitem(extractors.PUBLISHED, "medicalnet", replace(published, sha256="0" * 64))
    with pytest.raises(ValueError, match="hash"):
        extractors.find_weights("medicalnet")
    assert not list(published.target.parent.iterdir())


def test_missing_weights_say_address_and_place(published, monkeypatch):
    Path(published.url.removeprefix("file://")).unlink()
    with pytest.raises(ValueError) as error:
        extractors.find_weights("medicalnet")
    assert published.url in str(error.value) and str(published.target) in str(error.value)
    assert "--medicalnet_weights" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        extractors.find_weights("medicalnet", "nowhere.pth")


def test_local_inception_weights_load_and_others_are_refused(tmp_path, plain_inception):
    torch.save(plain_inception.state_dict(), tmp_path / "i.pth")
    cpu = torch.device("cpu")
    x = torch.rand(1, 1, 299, 299) * 2 - 1
    ours, theirs = (extractors.build_inception(p, cpu)(x) for p in (None, tmp_path / "i.pth"))
    assert torch.equal(ours, theirs)
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "bad.pth").write_bytes(b"x")
    for name, text in (("other", "are not those of FID"), ("bad", "cannot be read")):
        with pytest.raises(ValueError, match=text):
            extractors.build_inception(tmp_path / f"{name}.pth", cpu)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The program                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


SHAPE = (16, 16, 8)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of seven real and six generated volumes with a bright rod; one generated is 4D."""
    root = tmp_path_factory.mktemp("sets")
    for number, which in ((7, "real"), (6, "generated")):
        for n in range(number):
            array = random_array(n + 100 * number, SHAPE)
            array[4 + n % 3, 2:14, 4] += 9
            write_volume(root / which / f"v{n}.nii.gz", array[..., None] if n == 1 and number == 6 else array)
    return root


@pytest.fixture(scope="session")
def report(folders):
    """The result of one evaluation by the command line: process, output folder, digests before."""
    before = contents(folders)
    flags = ("--real", folders / "real", "--generated", folders / "generated", "--output", folders / "out")
    flags += ("--embedding", "random", "--planes", "axial", "--bootstrap", 20, "--real_split", "False")
    flags += ("--cache_dir", folders / "cache", "--device", "cpu")
    process = run_script("MedicalNet/evaluation.py", *flags, fresh=True)
    assert process.returncode == 0, process.stderr
    return process, folders / "out", before


@pytest.fixture
def no_page(monkeypatch):
    """No report.html: it takes as long as the numbers."""
    monkeypatch.setattr("MedicalNet.report.write_report", lambda *_: None)


def contents(folder):
    """{file: SHA-256} of all volumes below a folder."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.nii*")}


def settings(folders, **changed):
    """Configuration of a small evaluation in Python."""
    given = {"metrics": ("md", "anatomy"), "embedding": "random", "bootstrap": 0, "device": "cpu"}
    given |= {"real": str(folders / "real"), "generated": str(folders / "generated")}
    return evaluation.EvaluateConfig(**{**given, "cache_dir": "none", **changed})


def test_numbers_are_complete_and_carry_their_circumstances(report):
    process, folder, _ = report
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(record["metrics"]) == set(NUMBERS)
    for name, result in record["metrics"].items():
        low, high = result["interval_95"] or result["spread_95"]
        assert low <= result["value"] <= high, name
        assert (result["interval_95"] is None) != (result["spread_95"] is None) and result["estimand"]
        assert (result["n_real"], result["n_generated"]) == (7, 6)
        assert name in process.stdout
    assert record["weights"]["medicalnet"]["sha256"] == "random" and record["seed"] == 0
    assert record["real"]["shape"] == list(SHAPE) and "torch" in record["versions"]
    assert "min" in record["protocol"]["axial"] and "standardised" in record["protocol"]["volume"]
    assert any("6 volumes for" in w for w in record["warnings"])
    assert "Warning: FD-random-volume has 6 volumes for 512 dimensions" in process.stdout


def test_metric_values_has_three_lines_of_honest_names(report):
    lines = (report[1] / "metric_values.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines] == ["FD-random", "FD-random-volume", "AUC-PRD-random"]


def test_given_weights_give_the_papers_names_and_are_told_apart(
    report, folders, tmp_path, plain_inception, no_page
):
    torch.save(plain_inception.state_dict(), tmp_path / "inception.pth")
    torch.save(extractors.build_medicalnet(None, "cpu").state_dict(), tmp_path / "medicalnet.pth")
    weights = {name: str(tmp_path / f"{name}.pth") for name in ("inception", "medicalnet")}
    config = settings(
        folders,
        metrics=("fid", "md"),
        planes=("axial",),
        embedding="pretrained",
        output=str(tmp_path / "out"),
        **{f"{name}_weights": path for name, path in weights.items()},
    )
    record = evaluation.evaluate(config)
    random = json.loads((report[1] / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    lines = (tmp_path / "out" / "metric_values.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines] == ["FID", "MD", "AUC-PRD"]
    for name, other in (("FID", "FD-random"), ("MD", "FD-random-volume"), ("coverage", "coverage-random")):
        assert record["metrics"][name]["value"] == pytest.approx(random[other]["value"], rel=1e-5)
    for name, path in weights.items():
        digest = files.file_digest(path)
        assert record["weights"][name] == {"file": path, "sha256": digest, "published": False}
        assert any("are not the published" in w and digest in w for w in record["warnings"])


def test_inputs_are_never_written(report, folders):
    assert contents(folders) == report[2]


def test_report_shows_every_number_and_picture_without_a_network(report):
    _, folder, _ = report
    page = (folder / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    for name, result in metrics.items():
        assert name in page and f"{float(result['value']):.3g}" in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 2 + 1 + 6  # volumes of both sets, the furthest, nearest neighbours
    for image in images:
        assert np.ptp(np.array(Image.open(io.BytesIO(base64.b64decode(image))))) > 50
    assert page.count("<svg") == 4 and "radius along the centreline (mm)" in page
    outside = [u for u in re.findall(r'(?:src|href)="([^"]+)"', page) if not u.startswith(("data:", "#"))]
    assert outside == []
    for table in (
        "prd_curve",
        "features_2d",
        "nearest_real",
        "anatomy",
        "anatomy_histograms",
        "ms_ssim_pairs",
    ):
        with open(folder / f"{table}.csv", encoding="utf-8") as file:
            assert len(list(csv.reader(file))) > 6, table


def test_second_run_measures_nothing_and_one_changed_file_alone(folders, tmp_path, monkeypatch, no_page):
    seen = []
    measured = extractors.VolumeFeatures.of_batch
    monkeypatch.setattr(
        extractors.VolumeFeatures,
        "of_batch",
        lambda self, arrays: seen.extend(arrays) or measured(self, arrays),
    )
    for which in ("real", "generated"):
        (tmp_path / which).mkdir()
        for path in (folders / which).iterdir():
            (tmp_path / which / path.name).write_bytes(path.read_bytes())
    config = settings(tmp_path, cache_dir=str(tmp_path / "cache"), output=str(tmp_path / "out"))
    first = evaluation.evaluate(config)
    assert len(seen) == 13
    again = evaluation.evaluate(config)
    assert len(seen) == 13 and again["metrics"] == first["metrics"] and again["folder"].name == "out-1"
    write_volume(tmp_path / "generated" / "v0.nii.gz", random_array(999, SHAPE))
    changed = evaluation.evaluate(config)
    assert len(seen) == 14 and changed["metrics"] != first["metrics"]
    evaluation.evaluate(replace(config, recompute=True))
    assert len(seen) == 14 + 13


def test_volumes_in_memory_give_the_numbers_of_their_files(folders, report):
    """The numbers of the files are in the cache of the report."""
    cache = {"cache_dir": str(folders / "cache")}
    config = settings(folders, metrics=tuple(evaluation.GROUPS), planes=("axial",), **cache)
    evaluator = evaluation.Evaluator(config)
    files = volumes.list_volumes(folders / "generated", "--generated", evaluator.cache)
    in_memory = [volumes.VolumeInMemory(f.name, f.read(), f.affine) for f in files]
    sets = [evaluator.measure(one, 6, "generated volumes") for one in (files, iter(in_memory))]
    by_file, by_memory = (comparing.compare(evaluator.measure_real(), one, config)[0] for one in sets)
    assert by_file == by_memory and set(by_file) == set(evaluator.names()) == set(NUMBERS)


def test_real_halves_are_a_floor(folders, tmp_path, no_page):
    for n in range(8):
        write_volume(tmp_path / "real" / f"v{n}.nii.gz", random_array(n, SHAPE))
        write_volume(tmp_path / "real" / f"w{n}.nii.gz", random_array(n + 50, SHAPE))
    config = settings(folders, real=str(tmp_path / "real"), output=str(tmp_path / "o"), real_split=True)
    metrics = evaluation.evaluate(config)["metrics"]
    floor = metrics["FD-random-volume"]["real_split"]
    assert floor["n"] == 6 and floor["repeats"] == 20 and floor["standard_deviation"] > 0  # 6 generated
    assert floor["mean"] < metrics["FD-random-volume"]["equal_n"]["mean"]
    few = evaluation.evaluate(settings(folders, output=str(tmp_path / "p"), real_split=True))
    assert "7 real volumes are too few for a floor at equal n, which needs 12" in few["warnings"]


def test_a_folder_of_copies_is_listed_with_a_fresh_cache(folders, tmp_path):
    """Equal files have one entry in the cache, which several threads write at once."""
    whole = (folders / "real" / "v0.nii.gz").read_bytes()
    (tmp_path / "copies").mkdir()
    for n in range(32):
        (tmp_path / "copies" / f"v{n}.nii.gz").write_bytes(whole)
    cache = extractors.FeatureCache(tmp_path / "cache")
    assert len(volumes.list_volumes(tmp_path / "copies", "--real", cache)) == 32
    assert len([p for p in (tmp_path / "cache").rglob("*") if p.is_file()]) == 1


def test_copies_and_another_spacing_are_said(folders, tmp_path, no_page):
    for n in range(6):
        array = random_array(n % 2, SHAPE)
        write_volume(tmp_path / "copies" / f"v{n}.nii.gz", array, np.diag([2.0, 2, 2, 1]))
    config = settings(folders, generated=str(tmp_path / "copies"), output=str(tmp_path / "o"))
    warnings = evaluation.evaluate(config)["warnings"]
    assert "4 of the 6 generated volumes are copies of others" in warnings
    assert any("0.6 x 0.6 x 0.8 mm, of the generated ones 2 x 2 x 2 mm" in w for w in warnings)


def bad_file(array):
    """Function that writes one bad volume beside good ones."""
    return lambda folder: write_volume(folder / "z.nii.gz", array)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            bad_file(np.full(SHAPE, np.nan, np.float32)),
            "z.nii.gz has NaN or Inf in 2048 of 2048 voxels: repair",
        ),
        (bad_file(np.ones(SHAPE, np.float32)), "z.nii.gz is constant (every voxel 1): remove it"),
        (
            bad_file(random_array(0, (16, 16, 4))),
            "z.nii.gz has 16 x 16 x 4 voxels, most others have 16 x 16 x 8",
        ),
        (bad_file(random_array(0, (*SHAPE, 2))), "z.nii.gz is 4D (16, 16, 8, 2), expected 3D"),
        (lambda folder: (folder / "z.nii").write_text("no", encoding="utf-8"), "z.nii cannot be read"),
        (
            lambda folder: [p.unlink() for p in sorted(folder.iterdir())[2:]],
            "holds 2 volumes, at least 6 are needed",
        ),
        (lambda folder: [p.unlink() for p in folder.iterdir()], "holds no .nii or .nii.gz file"),
    ],
    ids=["nan", "constant", "shape", "4d", "text", "few", "empty"],
)
def test_bad_volumes_are_named_before_any_work(folders, tmp_path, monkeypatch, spoil, text):
    for n in range(6):
        write_volume(tmp_path / "set" / f"v{n}.nii.gz", random_array(n, SHAPE))
    spoil(tmp_path / "set")
    monkeypatch.setattr(evaluation, "measure", None)
    config = settings(folders, generated=str(tmp_path / "set"), output=str(tmp_path / "o"))
    with pytest.raises(ValueError) as error:
        evaluation.evaluate(config)
    assert text in str(error.value) and str(tmp_path / "set") in str(error.value)
    assert not (tmp_path / "o").exists()


def test_sets_of_different_shape_are_refused(folders, tmp_path):
    for n in range(6):
        write_volume(tmp_path / "set" / f"v{n}.nii.gz", random_array(n))
    with pytest.raises(ValueError, match=r"16 x 16 x 8 voxels .* the generated ones 8 x 8 x 4"):
        evaluation.evaluate(settings(folders, generated=str(tmp_path / "set"), output=str(tmp_path / "o")))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--metrics", "fidd"), "anatomy or copies or openmind or radiomics, got 'fidd'"),
        (("--bootstrap", "-1"), "--bootstrap must be between 0 and 100000"),
        (("--reel", "x"), "reel"),
        (("--real", "nowhere"), "--real nowhere does not exist"),
    ],
    ids=["choice", "range", "flag", "folder"],
)
def test_mistakes_on_the_command_line_get_one_line(flags, text, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["--embedding", "random", *flags])
    assert stop.value.code and text in str(stop.value.code) + capsys.readouterr().err

"""What an evaluation must not say: inputs, floors and intervals that would flatter."""

import itertools
import json
import os
import warnings
from dataclasses import replace

from volumetric.cli import UserError
from volumetric.collection import examined
from volumetric.sidecars import write_trained_on
from volumetric.vessels import vessel_mask

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from MedicalNet import (
    anatomy,
    comparing,
    copies,
    distances,
    evaluation,
    extractors,
    groups,
    measuring,
    report,
    volumes,
)
from tests.conftest import random_array, run_script, write_split, write_volume

SHAPE = (32, 32, 16)
AFFINE = np.diag([1.2, 1.2, 1.2, 1.0])
CPU = {"metrics": ("md", "anatomy", "copies"), "embedding": "random", "device": "cpu", "bootstrap": 20}


def normal(seed, *shape):
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def person(seed, vessels=True):
    """A volume with tissue and, unless told otherwise, a few bright tubes of its own."""
    rng = np.random.default_rng(seed)
    array = 100 + 5 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1) + rng.normal(0, 2, SHAPE)
    if vessels:
        x, y, z = np.indices(SHAPE)
        for _ in range(4):
            a, b, c = rng.uniform(4, 28), rng.uniform(4, 28), rng.uniform(3, 13)
            axis = rng.integers(3)
            away = [np.hypot(y - b, z - c), np.hypot(x - a, z - c), np.hypot(x - a, y - b)][axis]
            array += 80 * np.clip(2.2 - away, 0, 1)
    return array.astype(np.float32)


def make(folder, seeds, change=lambda array, n: array, affine=AFFINE, **kind):
    """Folder of persons, one for each seed."""
    for n, seed in enumerate(seeds):
        write_volume(folder / f"p{n:03d}.nii.gz", change(person(seed, **kind), n), affine)
    return str(folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Folder with 32 real volumes in real/ and 20 others in other/."""
    root = tmp_path_factory.mktemp("people")
    make(root / "real", range(32))
    make(root / "other", range(100, 120))
    return root


@pytest.fixture(scope="module")
def evaluated(people):
    """Function that compares real/ with a folder; features are kept in one cache, a page on request."""

    def compare(generated, page=False, **more):
        flags = {"real": str(people / "real"), "cache_dir": str(people / "cache"), **CPU, **more}
        folder = people / f"out{len(list(people.iterdir()))}"
        config = evaluation.EvaluateConfig(generated=str(generated), output=str(folder), **flags)
        with pytest.MonkeyPatch.context() as patch:
            if not page:  # it takes as long as the rest
                patch.setattr(report, "write_report", lambda *_: None)
            return evaluation.evaluate(config)

    return compare


def states(record):
    """{first word of a question: state of its verdict}."""
    words = {"look": "realistic", "diverse": "diverse", "copies": "copies", "anatomy": "anatomy"}
    return {
        words[word]: verdict["state"]
        for verdict in record["verdicts"]
        for word in words
        if word in verdict["question"]
    }


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Inputs                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@pytest.mark.parametrize("axes", ["LAS", "RAS", "PIR", "SLA"])
def test_the_same_anatomy_stored_along_other_axes_is_the_same(tmp_path, axes):
    array = person(3)
    image = nib.Nifti1Image(array, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes))
    stored = image.as_reoriented(turn)
    for n in range(6):
        nib.save(image, tmp_path / f"{n}.nii.gz")
    nib.save(stored, tmp_path / "turned.nii.gz")
    files = volumes.list_volumes(tmp_path, "--real", extractors.FeatureCache(None))
    assert len({file.content for file in files}) == 1 and files[-1].axes == axes
    np.testing.assert_array_equal(files[-1].read(), files[0].read())
    np.testing.assert_allclose(files[-1].affine, files[0].affine, atol=1e-6)


def test_axes_as_stored_are_the_published_protocol_and_are_warned_of(people, evaluated, tmp_path):
    left = np.diag([-1.2, 1.2, 1.2, 1])
    turned = make(tmp_path / "las", range(100, 120), lambda a, n: a[::-1], left)
    names = ("FD-random-volume", "coverage-random")
    plain, canonical = (evaluated(folder)["metrics"] for folder in (people / "other", turned))
    assert all(canonical[n]["value"] == pytest.approx(plain[n]["value"], rel=1e-5) for n in names)
    published = evaluated(turned, protocol="published")
    assert any("stored along different axes (RAS (32), LAS (20))" in w for w in published["warnings"])
    assert published["metrics"][names[0]]["value"] != pytest.approx(plain[names[0]]["value"], rel=1e-3)


def test_grey_values_are_scaled_as_in_training(people, evaluated, tmp_path):
    shifted = make(tmp_path / "s", range(100, 120), lambda a, n: 3 * a - 1000)
    plain, moved = (evaluated(f)["metrics"]["FD-random-volume"]["value"] for f in (people / "other", shifted))
    assert moved == pytest.approx(plain, rel=1e-3)
    published = evaluated(shifted, protocol="published")["metrics"]["FD-random-volume"]["value"]
    assert published > 10 * plain


def test_mixed_geometry_within_a_set_is_refused(people, evaluated, tmp_path):
    make(tmp_path / "mixed", range(8))
    write_volume(tmp_path / "mixed" / "p003.nii.gz", person(3), np.diag([3.6, 3.6, 3.6, 1]))
    with pytest.raises(
        UserError, match=r"p003\.nii\.gz has voxels of 3.6 x 3.6 x 3.6 mm, most others of 1.2"
    ):
        evaluated(tmp_path / "mixed")


def test_maps_of_deviations_are_no_volumes(people, tmp_path, capsys):
    make(tmp_path / "made", range(6))
    write_volume(tmp_path / "made" / "seed000042_deviation.nii.gz", random_array(0, SHAPE), AFFINE)
    files = volumes.list_volumes(tmp_path / "made", "--generated", extractors.FeatureCache(None))
    assert len(files) == 6 and "a map of deviation, which is no volume" in capsys.readouterr().out


def test_random_networks_do_not_claim_published_weights():
    network = extractors.build_medicalnet(None, "cpu")
    random, given = (extractors.VolumeFeatures(network, d).protocol for d in ("random", "ab12"))
    assert "random weights" in random and "23 data sets" not in random and "23 data sets" in given
    slices = extractors.SliceFeatures(network, "random", "axial").protocol
    assert "random weights" in slices and "2015" not in slices


def test_a_radiological_network_gives_a_second_opinion(people, evaluated, tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    names = {name: n for n, name in extractors.STAGES.items()}
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    published = {f"backbone.{names[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()}
    torch.save(published, tmp_path / "ResNet50.pt")
    build = extractors.build_radimagenet(tmp_path / "ResNet50.pt", torch.device("cpu"))
    network.fc = torch.nn.Identity()
    x = torch.rand(1, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(build(x), network(x), rtol=1e-4, atol=1e-4)
    features = extractors.RadiologicalFeatures(build, "ab")(person(0)[..., :2], AFFINE)["features"]
    again = extractors.RadiologicalFeatures(build, "ab")(7 * person(0)[..., :2] - 3, AFFINE)["features"]
    assert features.shape == (2, 2048) and np.allclose(features, again, atol=1e-3)
    torch.save({"backbone.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"RadImageNet weights .* are not those of ResNet-50"):
        extractors.build_radimagenet(tmp_path / "other.pt", torch.device("cpu"))
    few = {
        which: make(tmp_path / which, range(n, n + 6), lambda array, _: array[..., 4:10])
        for n, which in enumerate(("a", "b"))
    }
    weights = str(tmp_path / "ResNet50.pt")
    more = {"metrics": ("anatomy",), "radimagenet_weights": weights, "bootstrap": 0}
    record = evaluated(few["a"], page=True, real=few["b"], **more)
    assert {"FID-RadImageNet", "KID-RadImageNet"} <= record["metrics"].keys()
    assert record["weights"]["radimagenet"]["sha256"] and "RadImageNet" in record["protocol"]["radimagenet"]


def test_the_cache_knows_libraries_and_protocol_and_not_the_report(people, tmp_path, monkeypatch):
    seen = []
    measured = extractors.VolumeFeatures.of_batch
    monkeypatch.setattr(
        extractors.VolumeFeatures,
        "of_batch",
        lambda self, arrays: seen.extend(arrays) or measured(self, arrays),
    )
    folders = {"real": str(people / "real"), "generated": str(people / "other")}
    flags = {**CPU, **folders, "metrics": ("md",), "cache_dir": str(tmp_path / "cache")}
    config = evaluation.EvaluateConfig(output=str(tmp_path / "o"), **flags)
    monkeypatch.setattr(report, "write_report", lambda *_: None)
    for change, fresh in ((lambda: None, 52), (lambda: None, 0), ("libraries", 52), ("protocol", 52)):
        if change == "libraries":
            monkeypatch.setitem(measuring.LIBRARIES, "scipy", "0.0")
        if change == "protocol":
            config = replace(config, protocol="published")
        seen.clear()
        evaluation.evaluate(config)
        assert len(seen) == fresh, change


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Verdicts                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_verdicts_of_other_people_are_good(people, evaluated):
    record = evaluated(people / "other", page=True)
    outside = [name for name, m in record["metrics"].items() if (m["equal_n"] or {}).get("outside")]
    assert set(states(record).values()) == {"good"}, outside
    for name in ("FD-random-volume", "coverage-random", "W1-radius-mm"):
        equal = record["metrics"][name]["equal_n"]
        assert equal["n"] == 16 and not equal["outside"]  # half of 32 real, of 20 generated
    assert record["copies"] == []
    page = (record["folder"] / "report.html").read_text(encoding="utf-8")
    first = page[: page.index("<h2>")]
    assert first.count('class="verdict good unsure"') == 4 and first.count('class="verdict bad"') == 1  # few


def test_nothing_found_is_no_agreement(people, evaluated, tmp_path):
    empty = make(tmp_path / "empty", range(200, 220), vessels=False)
    record = evaluated(empty)
    assert states(record)["anatomy"] == "bad"
    assert any("vessels were found in none of the 20 generated volumes" in w for w in record["warnings"])
    real = make(tmp_path / "also", range(300, 320), vessels=False)
    both = evaluated(empty, page=True, real=real)
    assert states(both)["anatomy"] == "bad" and both["vessels"] == {"real": 0, "generated": 0}
    text = (both["folder"] / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text)["metrics"]["W1-radius-mm"]["value"] is None and "NaN" not in text


def test_a_collapsed_set_is_told(people, evaluated, tmp_path):
    rng = np.random.default_rng(0)
    collapsed = make(tmp_path / "c", 10 * [100, 101], lambda a, n: a + rng.normal(0, 0.5, SHAPE))
    record = evaluated(collapsed)
    assert states(record)["diverse"] == "bad"
    assert record["metrics"]["coverage-random"]["equal_n"]["outside"]


@pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("kind", ["exact", "noisy", "mirrored"])
def test_planted_copies_are_found_and_named(people, evaluated, tmp_path, kind, share):
    number = max(1, round(20 * share))
    rng = np.random.default_rng(1)

    def plant(array, n):
        if n >= number:
            return array
        copied = person(n)  # as the real one of that number
        return {
            "exact": copied,
            "noisy": copied + rng.normal(0, 8, SHAPE),
            "mirrored": copied[::-1] + rng.normal(0, 1, SHAPE),
        }[kind]

    record = evaluated(make(tmp_path / "planted", range(400, 420), plant), metrics=("copies",))
    found = {(copy["generated"][-11:], copy["real"][-11:]) for copy in record["copies"]}
    assert found == {(f"p{n:03d}.nii.gz", f"p{n:03d}.nii.gz") for n in range(number)}
    kinds = {"noisy": "near"}.get(kind, kind)
    assert {copy["kind"] for copy in record["copies"]} == {kinds} and states(record)["copies"] == "bad"
    assert any(
        f"{number} of the 20 generated volumes are copies of real ones" in w for w in record["warnings"]
    )


def test_held_out_volumes_tell_who_learned_by_heart(people, evaluated, tmp_path):
    held = make(tmp_path / "held", range(500, 520))
    rng = np.random.default_rng(2)
    heart = make(tmp_path / "heart", range(20), lambda a, n: a + rng.normal(0, 25, SHAPE))
    fair, copied = (
        evaluated(f, metrics=("copies",), held_out=held)["metrics"] for f in (people / "other", heart)
    )
    assert abs(fair["C_T"]["value"]) < 3 and copied["C_T"]["value"] < -4
    assert fair["authenticity"]["value"] > copied["authenticity"]["value"] + 0.3
    assert abs(fair["authenticity"]["value"] - fair["authenticity"]["held_out"]) < 0.35


def listed(**folders):
    """What an evaluation of copies lists, without measuring anything: (sets, warnings)."""
    flags = {"metrics": ("copies",), "embedding": "random", "device": "cpu", "cache_dir": "none"}
    given = {name: str(value) for name, value in folders.items()}
    return evaluation.list_others(evaluation.Evaluator(evaluation.EvaluateConfig(**flags, **given)))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """real/ of 14 volumes, held_out/ of 6 others, copied/ of held_out's stored otherwise, made/ of 6 more."""
    root = tmp_path_factory.mktemp("known")
    for which, first, number in (("real", 0, 14), ("held_out", 100, 6), ("made", 200, 6)):
        for n in range(number):
            write_volume(root / which / f"v{n}.nii.gz", random_array(first + n))
    for n in range(6):
        turned = 2 * random_array(100 + n)[::-1]
        write_volume(root / "copied" / f"other{n}.nii", turned, np.diag([-0.6, 0.6, 0.8, 1]))
    return root


def trained(known, folder, *parts):
    """A folder of generated volumes that says what its model was trained on, in a folder that is linked."""
    (folder / "made").mkdir(parents=True)
    for path in (known / "made").iterdir():
        (folder / "elsewhere").mkdir(exist_ok=True)
        (folder / "elsewhere" / path.name).write_bytes(path.read_bytes())
    (folder / "made" / "linked").symlink_to(folder / "elsewhere")
    contents = [examined(path).content for part in parts for path in (known / part).iterdir()]
    write_trained_on(folder / "elsewhere", contents, "models/cow/model_7.pt")
    return folder / "made"


def test_held_out_volumes_that_are_known_are_refused_by_their_content(known, tmp_path):
    sets, warnings = listed(real=known / "real", generated=known / "made", held_out=known / "held_out")
    assert [len(sets[name]) for name in ("real", "generated", "held_out")] == [14, 6, 6] and not warnings
    with pytest.raises(
        UserError, match=r"6 of the 6 volumes of --held_out are in --real, the first .*v0\.nii"
    ):
        listed(real=known / "copied", generated=known / "made", held_out=known / "held_out")
    with pytest.raises(UserError, match=r"6 of the 6 volumes of --held_out are in --generated, the first "):
        listed(real=known / "real", generated=known / "made", held_out=known / "made")
    made = trained(known, tmp_path / "a", "real", "copied")
    told = r"6 of the 6 .* are in what the model was trained on, the first .*trained on by model_7\.pt"
    with pytest.raises(UserError, match=told):
        listed(real=known / "real", generated=made, held_out=known / "held_out")
    made = trained(known, tmp_path / "b", "made")
    with pytest.raises(
        UserError, match=r"14 of the 14 volumes of --real are none that the model was trained on"
    ):
        listed(real=known / "real", generated=made, held_out=known / "held_out")
    _, warnings = listed(real=known / "real", generated=made)
    assert "the generator was not trained on 14 of the 14 real volumes" in warnings[0]


def test_a_split_says_which_real_volumes_are_held_out(known, tmp_path):
    paths = sorted((known / "real").iterdir())
    parts = dict(zip(paths, 8 * ["training"] + 6 * ["held_out"], strict=True))
    split = write_split(tmp_path / "split.csv", parts)
    sets, warnings = listed(real=known / "real", generated=known / "made", split=split)
    assert [f.path for f in sets["real"]] == paths[:8] and not warnings
    assert [f.path for f in sets["held_out"]] == paths[8:]
    split = write_split(tmp_path / "split.csv", parts | dict.fromkeys(paths[9:], "test"))
    sets, warnings = listed(real=known / "real", generated=known / "made", split=split)
    assert "held_out" not in sets and warnings == [
        "--split holds out 1 volumes of --real: C_T and authenticity need 6"
    ]
    with pytest.raises(UserError, match=r"has no row for 6 of 6 volumes"):
        listed(real=known / "real", generated=known / "made", held_out=known / "held_out", split=split)


def test_groups_of_volumes_with_one_name_are_told_apart(tmp_path):
    paths = [write_volume(tmp_path / f"site{s}" / "sub-00.nii.gz", random_array(ord(s))) for s in "AB"]
    files, table = [examined(path) for path in paths], tmp_path / "sites.csv"
    rows = ["file;site", "siteA/sub-00.nii.gz;A", "siteB\\sub-00.nii.gz; B", "siteC/sub-00.nii.gz;C"]
    table.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    assert groups.read_groups(table, files) == {"site": ["A", "B"]}
    table.write_text("\n".join([*rows, "siteA/sub-00.nii.gz;B"]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"sites\.csv has two rows for siteA/sub-00\.nii\.gz, with the site 'A'"
    ):
        groups.read_groups(table, files)
    table.write_text("\n".join([*rows[:2], "siteB/sub-00.nii.gz;"]), encoding="utf-8")
    with pytest.raises(UserError, match=r"sites\.csv has no site for .*siteB/sub-00\.nii\.gz: fill it in"):
        groups.read_groups(table, files)
    table.write_text("file;site\nsub-00.nii.gz;A\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has one row for sub-00\.nii\.gz, and 2 volumes are called so"):
        groups.read_groups(table, files)


def test_groups_that_are_missing_are_told(people, evaluated, tmp_path):
    table = tmp_path / "groups.csv"
    rows = [f"p{n:03d}.nii.gz,{'a' if n < 24 else 'b'},{n}" for n in range(32)]
    table.write_text("file,scanner,number\n" + "\n".join(rows), encoding="utf-8")
    record = evaluated(people / "other", groups=str(table))
    assert set(record["groups"]) == {"scanner"} and record["groups"]["scanner"]["b"]["n"] == 8
    low, high = record["groups"]["scanner"]["a"]["coverage_95"]
    assert low <= record["groups"]["scanner"]["a"]["coverage"] <= high
    one, other = normal(0, 10, 3), normal(1, 10, 3) + 50
    features = [np.concatenate([one, other]), normal(2, 12, 3)]
    sets = [measuring.Measured(list(map(str, range(len(f)))), {"volume": f[:, None]}, []) for f in features]
    told = groups.by_group({"of": 10 * ["near"] + 10 * ["far"]}, *sets)["of"]
    assert told["far"]["recall"] == told["far"]["coverage"] == 0 and told["near"]["coverage"] > 0.5
    table.write_text("file,scanner\np000.nii.gz,a\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no row for 31 volumes"):
        evaluated(people / "other", groups=str(table))


def test_a_shared_report_holds_nothing_of_real_volumes(people, evaluated):
    record = evaluated(people / "other", page=True, share=True)
    page = (record["folder"] / "report.html").read_text(encoding="utf-8")
    assert str(people / "real") not in page and ">real: " not in page and "--share" not in page
    assert page.count("data:image/png") == 2  # the furthest and the generated ones
    for path in record["folder"].glob("*.csv"):
        assert str(people / "real") not in path.read_text(encoding="utf-8"), path


def test_a_shared_report_pictures_no_copy_of_a_real_volume(people, evaluated, tmp_path):
    copied = make(tmp_path / "copied", range(400, 406), lambda array, n: person(n))
    record = evaluated(copied, page=True, share=True, metrics=("copies",))
    assert len(record["copies"]) == 6
    assert "data:image/png" not in (record["folder"] / "report.html").read_text(encoding="utf-8")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Statistics                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_frechet_distance_at_infinity_is_without_bias():
    """Two Gaussians of 64 volumes in 16 dimensions, means 0.6 apart: 0.36, and 3.0 by the plain distance."""
    found, plain, inside = [], [], []
    for seed in range(30):
        pair = normal(2 * seed, 64, 1, 16), normal(2 * seed + 1, 64, 1, 16) + 0.6 / 4
        extrapolated = distances.AtInfinity(*pair, 0)
        low, high = extrapolated.interval()
        found.append(extrapolated.exact())
        plain.append(distances.Frechet(*pair).exact())
        inside.append(low < 0.36 < high)
    assert np.mean(found) == pytest.approx(0.36, abs=0.2) and np.mean(plain) > 2.5
    assert np.mean(inside) > 0.9


def test_the_interval_of_the_kernel_distance_holds_the_truth():
    """0 for equal distributions, in about 95 of 100 pairs of sets."""
    held = []
    for seed in range(100):
        low, high = distances.Kernel(normal(2 * seed, 30, 1, 4), normal(2 * seed + 1, 30, 1, 4)).interval()
        held.append(low < 0 < high)
    assert 0.88 <= np.mean(held) <= 1


def test_the_floor_is_at_equal_n():
    """A set that is a third blurred and a third noisy is outside, however many real volumes there are."""
    real, generated = normal(0, 60, 1, 8), normal(1, 30, 1, 8)
    generated[:10] *= 0.3
    generated[10:20] += normal(2, 10, 1, 8) * 2
    names = [list(map(str, range(len(f)))) for f in (real, generated)]
    sets = [measuring.Measured(n, {"volume": f}, []) for n, f in zip(names, (real, generated), strict=True)]
    config = evaluation.EvaluateConfig(metrics=("md",), bootstrap=0, embedding="random")
    found, _ = comparing.compare(*sets, config)
    equal = found["FD-random-volume"]["equal_n"]
    assert equal["n"] == 30 and equal["outside"] and equal["mean"] > equal["floor"][1]
    other = measuring.Measured(names[1], {"volume": normal(3, 30, 1, 8)}, [])
    same, _ = comparing.compare(sets[0], other, config)
    assert not same["FD-random-volume"]["equal_n"]["outside"]


def test_vendi_score_counts_different_volumes():
    apart, sizes = np.concatenate([np.eye(6), -np.eye(6)]), (12, 12)  # six axes, both ways: mean 0
    assert distances.Vendi(apart, True, sizes).exact() == pytest.approx(6)
    alike = np.repeat(apart[[0, 1, 6, 7]], 3, axis=0)
    assert distances.Vendi(alike, True, sizes).exact() == pytest.approx(2)
    counts = np.array([1.0] * 3 + [0.0] * 9)
    assert distances.Vendi(alike, True, sizes)(counts, counts) == pytest.approx(1)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Vessels                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_thinning_survives_even_widths_at_all_offsets():
    for wide, high, axis in itertools.product((1, 2, 3, 4, 6), (1, 2, 4), range(3)):
        for offset in itertools.product((0, 1), repeat=2):
            mask = np.zeros((34, 18, 18), bool)
            mask[4:30, 5 + offset[0] : 5 + offset[0] + wide, 6 + offset[1] : 6 + offset[1] + high] = True
            lengths, radii = anatomy.branches_of(np.moveaxis(mask, 0, axis), np.ones(3))
            assert 26 - max(wide, high) - 1 <= lengths.sum() <= 30, (wide, high, axis, offset)
            assert len(lengths) == 1 and len(radii) > 20
            assert np.allclose(radii, min(wide, high) / 2), (wide, high, axis, offset)


def test_radii_are_distances_to_the_surface():
    """None is 0, and a mirrored mask has the same ones; where voxels meet by a corner it is a voxel's."""
    x, y, z = np.indices((40, 40, 24)) * np.array([0.5, 0.5, 0.8]).reshape(3, 1, 1, 1)
    mask = (np.hypot(y - 10, z - 9.6) < 2.1) | ((np.hypot(x - 10, z - 9.6) < 1.1) & (y > 10))
    spacing = np.array([0.5, 0.5, 0.8])
    means = []
    for turn in itertools.product((1, -1), repeat=3):
        _, radii = anatomy.branches_of(mask[:: turn[0], :: turn[1], :: turn[2]], spacing)
        assert radii.min() >= 0.25
        means.append(radii.mean())
    assert np.ptp(means) < 0.02
    steps = np.zeros((12, 12, 12), bool)
    steps[range(2, 10), range(2, 10), range(2, 10)] = True
    assert np.allclose(anatomy.branches_of(steps, np.ones(3))[1], 0.5)


def test_branches_sum_to_the_centreline():
    x, y, z = np.indices((60, 60, 30)) * 0.5
    mask = (np.hypot(x - 15, z - 7) < 1.6) | ((np.hypot(y - 15, z - 7) < 1.6) & (x > 15))
    lengths, radii = anatomy.branches_of(mask, np.full(3, 0.5))
    assert len(lengths) == 3 and lengths.sum() == pytest.approx(29 + 14, rel=0.1)
    assert np.median(radii) == pytest.approx(1.6, abs=0.4)


def test_the_vessel_mask_is_that_of_the_phantoms(tmp_path):
    done = run_script(
        "sample_data/phantom.py", "--output", tmp_path / "v", "--labels", tmp_path / "l", "--num", 10,
        "--image_size", 64, "--image_depth", 16,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dice, sizes = [], []
    for path in sorted((tmp_path / "v").glob("*.nii.gz")):
        image = nib.load(path)
        mask = vessel_mask(image.get_fdata(dtype=np.float32), nib.affines.voxel_sizes(image.affine))
        truth = nib.load(tmp_path / "l" / path.name).get_fdata() > 0
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        sizes.append((mask.sum(), truth.sum()))
    assert np.mean(dice) > 0.81 and np.corrcoef(np.transpose(sizes))[0, 1] > 0.5


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Robustness                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_mistakes_are_found_before_hours_of_work(people, evaluated, tmp_path):
    with pytest.raises(UserError, match="--bootstrap must be 0, or 20 or more, got 1"):
        evaluated(people / "other", bootstrap=1)
    with pytest.raises(UserError, match="lies in --real"):
        evaluation.evaluate(
            evaluation.EvaluateConfig(
                real=str(people / "real"),
                generated=str(people / "other"),
                output=str(people / "real" / "out"),
                **CPU,
            )
        )
    if os.getuid():  # root may look into everything
        (people / "other" / "locked").mkdir(mode=0)
        with pytest.raises(UserError, match="cannot be looked into"):
            evaluated(people / "other")
    assert not (people / "real" / "out").exists()


def test_a_cache_that_cannot_be_written_is_done_without(people, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    cache = extractors.FeatureCache(tmp_path / "file" / "cache")
    cache.put(["a"], {"x": np.ones(1)})
    cache.put(["b"], {"x": np.ones(1)})
    assert cache.get(["a"]) is None
    assert capsys.readouterr().err.count("cannot be written to") == 1


def test_equal_real_volumes_give_valid_json(evaluated, people, tmp_path):
    same = make(tmp_path / "same", 14 * [7])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a division by 0
        record = evaluated(people / "other", real=same)
    text = (record["folder"] / "metrics.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert any("13 of the 14 real volumes are copies" in w for w in record["warnings"])


def test_copies_are_told_by_what_stands_out_and_not_by_brightness():
    """The distance of a copy is small, however bright; that of another person is large."""
    print_of = copies.Fingerprint()
    one, bright, noisy, other = (
        print_of(a.astype(np.float32), AFFINE)["features"][0]
        for a in (person(1), 5 * person(1) + 300, person(1) + 8 * normal(0, *SHAPE), person(2))
    )
    assert 1 - one @ bright < 1e-4 < 1 - one @ noisy < 0.3 < 1 - one @ other

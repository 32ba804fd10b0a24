"""What a continued run takes from its checkpoint, refuses, and tells: one rule for all trainers."""

from dataclasses import asdict, fields

from volumetric import runs, training
from volumetric.cli import UserError

import pytest

import label_to_volume as lv
import progressive_wgan as pw
import stylegan2_pytorch as sg
from segmentation import segmentation
from segmentation.segmentation import SegmentationConfig
from tests import test_label_to_volume, test_progressive, test_segmenter
from tests.conftest import interrupted_at, write_labels
from tests.test_label_to_volume import write_pairs
from tests.test_progressive import config_of, write_classes

CONFIGS = (sg.TrainConfig, pw.ProgressiveConfig, lv.LabelToVolumeConfig, SegmentationConfig)
# Options with which a continued run computes what it would without them.
OF_NO_MATTER = {
    "told by the contents of the volumes": {"data", "split"},
    "where and how it runs": {
        "results_dir",
        "models_dir",
        "name",
        "model",
        "output",
        "num_workers",
        "multi_gpus",
    },
    "which run it is": {"new", "load_from", "init_from", "mode"},
    "what is kept and shown of it": {
        *("keep_checkpoints", "evaluate_every", "log", "num_image_tiles", "num_previews", "trunc_psi"),
        *("calculate_fid_every", "calculate_fid_num_images", "clear_fid_cache", "embedding"),
        *("medicalnet_weights", "inception_weights"),
    },
    "the same numbers, sooner or in less memory": {"checkpoint_activations", "cuda_graphs", "deterministic"},
    "other work than training": {
        *(
            "dry_run",
            "evaluate_checkpoints",
            "runs",
            "generate",
            "checkpoint",
            "num_generate",
            "generate_interpolation",
            "recreate",
        ),
        *(
            "interpolation_num_steps",
            "save_frames",
            "label",
            "use_average",
            "show",
            "num_per_map",
            "edit",
            "fit",
        ),
        *("vary", "vary_mm", "vary_radius"),
        *("anatomy", "radius", "aneurysm", "stenosis", "variants", "chiral", "num", "segmenter"),
        *("only_passing", "most"),
    },
    "not available": {"transparent"},
}
OF_NO_MATTER_FOR = {
    sg.TrainConfig: {"num_train_steps"},  # told where a schedule depends on it, `scheduled`
    pw.ProgressiveConfig: {"num_train_steps"},
    lv.LabelToVolumeConfig: {"num_train_steps", "labels", "subjects"},  # contents; what is held out stays so
    SegmentationConfig: {"labels", "save_every"},
}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_says_whether_it_matters_to_a_continued_run(config):
    aside = set().union(*OF_NO_MATTER.values()) | OF_NO_MATTER_FOR[config]
    for f in fields(config):
        rule = f.metadata["option"]
        marks = (rule.resumed, rule.kept, rule.network).count(True)
        assert marks == (0 if f.name in aside else 1), f.name


def test_phases_are_those_of_the_run_whatever_the_defaults_are(tmp_path, capsys):
    """With another pace, step 7 would fall back to a smaller size."""
    folder = write_classes(tmp_path)
    first = pw.train_from_folder(config_of(folder, num_train_steps=7, gradient_accumulate_every=2))
    defaults = {name: getattr(pw.ProgressiveConfig, name) for name in (*pw.NETWORK_SETTINGS, *pw.PACE)}
    again = pw.train_from_folder(config_of(folder, **defaults))
    assert again.phases == first.phases and again.step == first.phases[-1].end == 7
    assert "batch_size 4, gradient_accumulate_every 2, volumes_per_phase 16" in capsys.readouterr().out
    for name in pw.PACE:
        with pytest.raises(UserError, match=rf"--{name} is 6, but .*model_0\.pt has "):
            pw.train_from_folder(config_of(folder, **{name: 6}))
    tuned = {"name": "tuned", "init_from": str(first.config.models / "model_0.pt"), "num_train_steps": 1}
    assert pw.train_from_folder(config_of(folder, volumes_per_phase=8, batch_size=2, **tuned)).step == 1


def test_rates_by_fan_in_are_those_of_the_run(make_config):
    """Whose optimiser has a group for each, and no others."""
    sg.train_from_folder(make_config(num_train_steps=1, equalized_lr=True))
    again = sg.train_from_folder(make_config(num_train_steps=2))
    assert again.config.equalized_lr and len(again.G_opt.param_groups) > 1
    with pytest.raises(UserError, match=r"--equalized_lr is True, but .* has False"):
        training.adopt_settings(make_config(equalized_lr=True), asdict(make_config()), "model_0.pt")


def test_what_follows_from_an_option_follows_from_the_runs(tmp_path):
    config = lv.LabelToVolumeConfig(name="t")
    assert config.l1_weight == 10 and config.adopting({"discriminator": ("patch",)}).l1_weight == 100
    given = lv.LabelToVolumeConfig(name="t", l1_weight=3)
    assert given.adopting({"discriminator": ("patch",)}).l1_weight == 3


def test_other_classes_are_refused_and_other_members_told(make_config, label_table, data, capsys):
    settings = {"labels": str(label_table), "num_train_steps": 1}
    first = sg.train_from_folder(make_config(**settings))
    rows = label_table.read_text(encoding="utf-8").replace("v0.nii.gz,whole", "v0.nii.gz,missing")
    label_table.write_text(rows, encoding="utf-8")
    sg.train_from_folder(make_config(**settings | {"num_train_steps": 2}))
    assert "Volumes have other classes by --labels than when" in capsys.readouterr().out
    source = str(runs.find_checkpoint(first.config.models))
    with pytest.raises(UserError, match=r"missing, whole, --labels gives none: give the same\.$"):
        sg.train_from_folder(make_config(name="tuned", init_from=source))
    with pytest.raises(UserError, match="give the same, another --name, or --new"):
        sg.train_from_folder(make_config())
    assert write_labels(data.parent, data) == label_table


def test_a_signal_ends_every_trainer_with_its_status(tmp_path):
    maps, classes = write_pairs(tmp_path / "pairs"), write_classes(tmp_path / "classes")
    for trainer, main, flags in (
        (lv.Trainer, lv.main, test_label_to_volume.flags_of(maps, num_train_steps=9)),
        (pw.Trainer, pw.main, test_progressive.flags_of(classes)),
    ):
        with interrupted_at(trainer, 1), pytest.raises(SystemExit) as ended:
            main(list(map(str, flags)))
        assert ended.value.code == 143
    volumes, labels = test_segmenter.write_pairs(tmp_path, 2)
    flags = [
        "--data",
        volumes,
        "--labels",
        labels,
        "--width",
        4,
        "--patch_size",
        "16,16,16",
        "--device",
        "cpu",
    ]
    with interrupted_at(segmentation.Segmenter, 1), pytest.raises(SystemExit) as ended:
        segmentation.main([*map(str, [*flags, "--model", tmp_path / "net.pt"])])
    assert ended.value.code == 143


@pytest.mark.parametrize(("name", "value"), [("seed", 7), ("cache", "none"), ("loss", "hinge")])
def test_what_changes_the_numbers_is_told(tmp_path, capsys, name, value):
    folder = write_classes(tmp_path)
    pw.train_from_folder(config_of(folder, num_train_steps=1))
    capsys.readouterr()
    pw.train_from_folder(config_of(folder, num_train_steps=2, **{name: value}))
    assert capsys.readouterr().out.count(f"--{name} was ") == 1

"""A short version of `make faults`, and faults that were found once."""

import errno
import gzip
import os
import resource

from volumetric import runs
from volumetric.cli import UserError
from volumetric.collection import find_volumes, read
from volumetric.files import atomic_path, clear_parts, new_folder, part_of

import nibabel as nib
import numpy as np
import pytest
import torch

import CoW_generator as cow
import stylegan2_pytorch as sg
from MedicalNet import evaluation
from sample_data import phantom
from tests.faults import volumes
from tests.faults.__main__ import KINDS
from tests.faults.children import limit_memory, run
from tests.faults.jobs import finished, training

SHORT = {"kills": 2, "ends": 1, "long": 60, "flips": 20, "fields": 8, "texts": 8, "volumes": 60, "disks": 4}
SHORT |= {"commands": 60, "experiments": 1}


def test_every_kind_has_a_short_version():
    assert SHORT.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", SHORT)
def test_faults(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the check changes it
    counts, faults = KINDS[kind][0](tmp_path, SHORT[kind], 1)
    assert counts and not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a model of two steps, models/trained."""
    folder = tmp_path_factory.mktemp("faults")
    finished(folder, "trained", 2, "--save_every", "1")
    return folder


def refusal(main, flags, capsys):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, flags)))
    text = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert text.startswith("Error: ") and "\n" not in text.strip() and len(text) < 600
    return text


REFUSED = {
    "None for a list": (
        sg,
        ["--attn_layers", "None"],
        "--attn_layers must be a list of finite numbers or words",
    ),
    "empty text": (sg, ["--data", ""], "--data is empty"),
    "a device file": (sg, ["--init_from", "/dev/null"], "--init_from /dev/null is no file"),
    "a folder that is none": (sg, ["--results_dir", "/dev/null"], "--results_dir /dev/null cannot be made"),
    "a name of 300 letters": (sg, ["--name", 300 * "x"], "--name must have at most 150 letters, got 300"),
    "a name with a newline": (sg, ["--name", "a\nb"], "--name must be one line of printable characters"),
    "the packs' name": (sg, ["--name", "packed"], "--name packed is the folder of --cache disk"),
    "superscript": (sg, ["--device", "cuda:²"], "--device must be auto, cpu, cuda or cuda:<n>"),
    "a far device": (sg, ["--device", "cuda:99999999999"], "--device must be auto, cpu, cuda or cuda:<n>"),
    "capacity": (sg, ["--network_capacity", "1" + 30 * "0"], "--network_capacity must be at most 1024"),
    "rate": (sg, ["--learning_rate", "1e30"], "--learning_rate must be at most 10"),
    "tiles": (sg, ["--num_image_tiles", "5000"], "--num_image_tiles must be at most 64"),
    "workers": (sg, ["--num_workers", "100"], "--num_workers must be between 0 and 64"),
    "a flag without value": (sg, ["--name"], "--name lacks its value"),
    "a flag twice": (sg, ["--seed", "1", "--seed", "2"], "--seed is given twice"),
    "minus infinity": (sg, ["--gamma", "-inf"], "--gamma must be a number, got '-inf'"),
    "no flag": (sg, ["data"], "'data' is no flag"),
    "near a flag": (sg, ["--sed", "1"], "There is no flag '--sed', do you mean --seed?"),
    "no run to go back in": (sg, ["--load_from", "5", "--data", "x"], "There is no checkpoint model_<n>.pt"),
    "seeds": (cow, ["--seeds", "0-1000000000"], "--seeds 0-1000000000 are more than 1000000"),
    "a seed beyond 2^63": (cow, ["--seed", 2**64], "--seed must be at most 9007199254740992"),
    "range": (cow, ["--intensity_range", "[0,1e400]"], "--intensity_range must be a list of finite numbers"),
    "weights": (cow, ["--medicalnet_weights", "w.pth"], "--medicalnet_weights w.pth does not exist"),
    "no template": (cow, ["--template_path", "t.nii"], "--template_path t.nii does not exist"),
    "empty output": (evaluation, ["--output", ""], "--output is empty"),
    "unwritable output": (evaluation, ["--output", "/proc/x"], ""),
    "shift": (phantom, ["--whole_head", "--shift", "1e400"], "--shift must be"),
    "spacing": (phantom, ["--whole_head", "--head_spacing", "5e-324"], "--head_spacing must be"),
    "huge phantoms": (phantom, ["--image_size", 2**20], "--image_size must be between 4 and 1024"),
    "phantoms of a voxel": (phantom, ["--image_size", "1", "--image_depth", "1"], "--image_size"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_odd_command_lines_get_one_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program, flags, text = REFUSED[kind]
    assert text in refusal(program.main, flags, capsys)
    assert not list(tmp_path.iterdir())


def test_a_style_file_with_nan_is_refused(trained, tmp_path, capsys):
    np.save(tmp_path / "a_style.npy", np.full((1, 512), np.nan))
    flags = ["--checkpoint", trained / "models" / "trained" / "model_2.pt", "--load_from_style"]
    flags += [
        "--mode",
        "stochastic_variation",
        "--style_npy_path",
        tmp_path / "a_style.npy",
        "--device",
        "cpu",
    ]
    flags += ["--save_directory", tmp_path / "made"]
    assert "a_style.npy has NaN or Inf" in refusal(cow.main, flags, capsys)


def test_memory_bombs_are_looked_at_from_outside(tmp_path):
    """A file of 9 MB that inflates to 2 GiB is refused by its header, with 64 MiB to spare; so are lies."""
    volumes.bomb(tmp_path / "bomb.nii.gz", 2)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(5000))
    header["dim"] = [3, 100, -100, 100, 1, 1, 1, 1]
    (tmp_path / "negative.nii").write_bytes(header.binaryblock + bytes(5000))
    header["dim"], header["vox_offset"] = [3, 10, 10, 10, 1, 1, 1, 1], np.inf
    (tmp_path / "offset.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(5000)))

    def work():
        limit_memory(0.0625)
        for name in ("bomb.nii.gz", "huge.nii", "negative.nii", "offset.nii.gz"):
            with pytest.raises(UserError) as refused:
                read(tmp_path / name, None if "offset" in name else (128, 128, 32))
            print(refused.value)

    ended = run(work, tmp_path / "log")
    assert ended.status == 0 and len(ended.text.splitlines()) == 4, ended.text
    for text in ("1024 x 1024 x 2048", "32767 x 32767", "-100", "byte inf"):
        assert text in ended.text


def test_numbers_of_checkpoints_are_plain(tmp_path):
    for name in ("model_².pt", "model_007.pt", "model_-1.pt", "model_1e3.pt", "model_best.pt", "model_7.pt"):
        torch.save({"step": 1}, tmp_path / name)
    assert runs.checkpoint_numbers(tmp_path) == [7]


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.nii", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(UserError, match="not UTF-8: rename"):
        find_volumes(tmp_path)


def test_a_new_folder_is_called_failed_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt
    with new_folder(tmp_path / "out") as folder, new_folder(tmp_path / "out") as other:
        assert (folder.name, other.name) == ("out", "out-1")
    names = ["out", "out-1", "out-failed", "out-failed-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "out-failed" / "half").exists() and not (folder / "half").exists()


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    target = tmp_path / "precious"
    target.write_text("kept", encoding="utf-8")
    monkeypatch.setattr("volumetric.files.part_of", lambda path: path.with_name(".part-known"))
    (tmp_path / ".part-known").symlink_to(target)
    with pytest.raises(OSError), atomic_path(tmp_path / "a.txt") as part:
        part.write_text("lost", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "kept"


def test_parts_of_other_machines_are_kept_for_a_week(tmp_path):
    path = tmp_path / ".part-00000000-1-abcdef01-a.nii.gz"
    path.write_bytes(b"half")
    clear_parts(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    own = part_of(tmp_path / "b.nii.gz")
    own.write_bytes(b"half")
    clear_parts(tmp_path)
    assert not path.exists() and own.exists()


def test_a_preview_lost_between_checkpoint_and_kill_is_made_up(trained):
    folder = trained / "results" / "lost" / "previews"
    finished(trained, "lost", 3, "--save_every", "1")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.glob("000003-*"):
        path.unlink()
    finished(trained, "lost", 4, "--save_every", "1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_damaged_volume_is_made_again(trained):
    flags = ["--checkpoint", trained / "models" / "trained" / "model_2.pt", "--num_generate", 1]
    flags = list(map(str, [*flags, "--save_directory", trained / "made", "--device", "cpu"]))
    cow.main(flags)
    path = trained / "made" / "normal" / "seed000000.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    cow.main(flags)
    assert path.read_bytes() == whole


def test_a_table_without_steps_is_kept_aside(trained):
    table = trained / "results" / "trained" / "metrics.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    finished(trained, "trained", 3, "--save_every", "1")
    assert table.read_text(encoding="utf-8").startswith("step,D,G")
    assert (table.parent / "metrics-superseded.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_a_full_disk_costs_a_preview_and_not_the_training(trained):
    """No file may have more than 300 bytes."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with runs.dispensable("A preview"), atomic_path(trained / "picture.png") as part:
            part.write_bytes(bytes(1000))
        sg.main(training(trained, "full", 3, "--save_every", "1"))

    ended = run(work, trained / "log")
    assert "Warning: A preview was left out" in ended.text
    assert ended.refused and "could not be written" in ended.text and "make room" in ended.text


def test_a_full_disk_costs_the_volume_of_a_preview_alone(make_config, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    trainer = sg.train_from_folder(make_config(num_train_steps=1))
    assert "Warning: The preview GE.nii.gz of step 0 was left out" in capsys.readouterr().err
    previews = sorted(p.name for p in (trainer.config.results / "previews").iterdir())
    assert trainer.step == 1 and previews == ["000000-G.png", "000000-GE.png", "000000-mixed.png"]

"""A number that a message advises is one that is then accepted."""

import itertools
import re

from volumetric import collection, runs, training
from volumetric.cli import UserError
from volumetric.parallel import Group

import pytest

import label_to_volume as lv
import progressive_wgan as pw
import stylegan2_pytorch as sg
from segmentation import segmentation
from tests import test_label_to_volume, test_segmenter
from tests.test_progressive import config_of, write_classes


def advised(pattern, function, *args, **settings):
    """Numbers that the message of a refusal advises."""
    with pytest.raises(UserError) as refused:
        function(*args, **settings)
    found = re.search(pattern, str(refused.value))
    assert found, refused.value
    return [int(n) for n in found.groups()]


def test_a_batch_for_too_few_volumes_is_one_at_every_size(tmp_path):
    """The first sizes have four times the batch."""
    folder = write_classes(tmp_path)

    def train(**settings):
        return pw.train_from_folder(config_of(folder, dry_run=True, **settings))

    (batch,) = advised(
        r"holds 16 volumes, fewer than a batch of 32: .*--batch_size (\d+)\.", train, batch_size=8
    )
    assert batch == 4 and train(batch_size=batch).step == 0


@pytest.mark.parametrize(
    ("world", "shrink", "expected"), [(1, 1, 6), (2, 1, 6), (4, 1, 4), (1, 4, 4), (2, 2, 4)]
)
def test_a_batch_for_too_few_volumes_can_be_shared_out(make_config, world, shrink, expected):
    config, group = make_config(batch_size=16, pl_batch_shrink=shrink), Group(0, world)
    pattern = r"fewer than a batch of 16: add volumes or set --batch_size (\d+)\.$"
    (batch,) = advised(pattern, training.check_number, 6, config, group, "data")
    assert batch == expected and group.own(batch, shrink) and batch <= 6
    training.check_number(6, make_config(batch_size=batch, pl_batch_shrink=shrink), group, "data")
    with pytest.raises(UserError, match=r"fewer than a batch of 16: add volumes\.$"):
        training.check_number(6, config, Group(0, 8), "data")


def test_a_batch_for_those_that_are_not_held_out(tmp_path):
    folder = test_label_to_volume.write_pairs(tmp_path)

    def train(**settings):
        return lv.train_from_folder(test_label_to_volume.config_of(folder, num_train_steps=1, **settings))

    (batch,) = advised(r"without what is held out holds 4 volumes.*--batch_size (\d+)\.", train, batch_size=5)
    assert batch == 4 and train(batch_size=batch).step == 1


def test_a_batch_for_processes():
    group = Group(1, 3)
    (unit,) = advised(r"choose a multiple of (\d+)", group.own, 8)
    assert group.own(4 * unit) == 4


def test_sizes_of_volumes():
    for size, depth in itertools.product((3, 5, 12, 100, 1000), (3, 12, 300, 1024)):
        pattern = r"conform\.py --size (\d+),(\d+),(\d+)"
        x, y, z = advised(pattern, sg.TrainConfig, image_size=size, image_depth=depth)
        assert x == y and sg.TrainConfig(image_size=x, image_depth=z).array_shape == (x, y, z)
    own = r"--image_size (\d+) --image_depth (\d+)$"
    size, depth = advised(own, collection.refuse_shape, (64, 64, 16), (8, 8, 4))
    assert sg.TrainConfig(image_size=size, image_depth=depth).array_shape == (64, 64, 16)
    with pytest.raises(UserError, match=r"--size 8,8,4$"):
        collection.refuse_shape((2048, 2048, 16), (8, 8, 4))  # larger than can be trained


def test_values_of_a_checkpoint_and_its_numbers(make_config):
    sg.train_from_folder(make_config(num_train_steps=2, save_every=1))

    def train(**settings):
        return sg.train_from_folder(make_config(num_train_steps=2, save_every=1, **settings))

    (capacity,) = advised(r"has (\d+): give the same", train, network_capacity=4)
    assert train(network_capacity=capacity).step == 2
    for number in advised(r"--load_from can be (\d+), (\d+), (\d+)", train, load_from=7)[::-1]:
        assert train(load_from=number).step == 2


def test_a_patch_and_a_plan_of_a_segmentation(tmp_path, capsys):
    test_segmenter.write_pairs(tmp_path, 1)

    def train(**settings):
        return segmentation.train(test_segmenter.small_config(tmp_path, **settings))

    (edge,) = advised(r"an axis of (\d+) voxels is needed", train, patch_size=(8, 8, 8))
    assert train(patch_size=(edge, 8, 8), num_train_steps=1).step == 1
    train(patch_size=(edge, 8, 8), num_train_steps=1)
    assert "is at step 1 already: its plan is done" in capsys.readouterr().out
    assert runs.checkpoint_numbers(tmp_path / "run" / "models") == [0]

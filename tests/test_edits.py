"""Edits of label maps: dropping, thinning, thickening and swapping keep what they say they keep."""

import numpy as np
import pytest

from sample_data import phantom
from segmentation import maps, metrics
from segmentation.cases import Classes

NAMES = {1: "R-A", 2: "L-A", 5: "B"}


def test_edits_of_a_map():
    classes = Classes(NAMES)
    numbers = np.zeros((20, 20, 20), np.uint8)
    numbers[4:9, 2:18, 8:13], numbers[14:17, 5:15, 9:12], numbers[10, 10, 10] = 1, 2, 3

    def edit(text):
        return maps.edited(numbers, np.diag([0.5, 0.5, 0.5, 1]), [maps.read_edit(text)], classes)

    assert set(np.unique(edit("drop:R-A"))) == {0, 2, 3}
    thin = edit("thin:R-A:1.4") == 1
    _, parts = maps.ndimage.label(thin, np.ones((3, 3, 3)))
    assert parts == 1 and 0 < thin.sum() < 100 and not (thin & (numbers != 1)).any()  # one line is left
    thick = edit("thicken:L-A:0.6")
    assert (thick == 2).sum() > (numbers == 2).sum() and ((thick == 1) == (numbers == 1)).all()
    swapped = edit("swap_sides")
    assert (swapped == np.array([0, 2, 1, 3])[numbers[::-1]]).all()


def joined_tubes(wide, high, offset=0):
    """Label map of three vessels in a row, one tube, and one beside them. Shapes: -> (34, 20, 18) uint8"""
    numbers = np.zeros((34, 20, 18), np.uint8)
    for number, (start, stop) in enumerate(((0, 12), (12, 17), (17, 30)), start=1):
        numbers[start:stop, 5 + offset : 5 + offset + wide, 6 : 6 + high] = number
    numbers[4:28, 15:17, 6:8] = 4
    return numbers


def same_vessels(one, other):
    """True if label maps have the same classes, of as many pieces, that touch one another as before."""
    pieces = [
        [metrics.components(n == c) for c in range(5)[1:]] + [metrics.components(n > 0)] for n in (one, other)
    ]
    return pieces[0] == pieces[1] and metrics.touching(one) == metrics.touching(other)


@pytest.mark.parametrize("wide, high", [(1, 1), (2, 2), (2, 1), (3, 3), (4, 2), (4, 4), (5, 3)])
def test_a_thinned_vessel_neither_vanishes_nor_leaves_its_neighbours(wide, high):
    for number in (1, 2, 3):
        numbers = joined_tubes(wide, high, number % 2)
        thin = maps.thin(numbers, number, np.ones(3), 50)
        assert same_vessels(numbers, thin), number
        assert ((thin == numbers) | ((thin == 0) & (numbers == number))).all()
        long = np.ptp(np.argwhere(numbers == number)[:, 0]) + 1
        assert long - wide <= (thin == number).sum() <= long + wide  # one line
        some = maps.thin(numbers, number, np.ones(3), 1)
        assert same_vessels(numbers, some) and (some == number).sum() >= (thin == number).sum()
    assert (
        maps.thin(joined_tubes(5, 5), 1, np.ones(3), 1) == 1
    ).sum() == 12 * 9  # 3 x 3, to the volume's edge


def test_a_whole_circle_stays_one_whatever_is_thinned_or_thickened():
    numbers = phantom.make_phantom(0, 0, (64, 64, 16))[1].astype(np.uint8)
    for number in (1, 7, 9, 10):
        for change, mm in ((maps.thin, 50), (maps.thicken, 3)):
            found = change(numbers, number, np.full(3, 1.24), mm)
            assert metrics.touching(found) == metrics.touching(numbers)
            assert metrics.components(found > 0) == metrics.components(numbers > 0)
            assert metrics.components(found == number) == metrics.components(numbers == number)
            sizes = [(n == number).sum() for n in (numbers, found)]
            assert 0 < sizes[1] <= sizes[0] if change is maps.thin else sizes[1] > sizes[0]


def test_a_vessel_beside_another_is_thinned_within_itself():
    numbers = np.zeros((30, 16, 12), np.uint8)
    numbers[3:27, 4:7, 4:7], numbers[3:27, 7:10, 4:7] = 1, 2  # the line of both lies in one of them
    thin = maps.thin(numbers, 1, np.ones(3), 50) == 1
    assert np.ptp(np.argwhere(thin)[:, 0]) > 18 and thin.sum() < 60 and metrics.components(thin) == 1
    numbers[10, 5, 5] = 0  # a cavity is none
    assert (maps.thin(numbers, 1, np.ones(3), 50) == 1).sum() < 60


def test_a_thickened_vessel_joins_no_others():
    numbers = joined_tubes(2, 2)
    thick = maps.thicken(numbers, 1, np.ones(3), 9)
    assert same_vessels(numbers, thick) and (thick == 1).sum() > 10 * (numbers == 1).sum()
    wall = np.zeros((20, 20, 20), np.uint8)
    wall[9, 9, 9], wall[11] = 1, 2
    assert not (maps.thicken(wall, 1, np.ones(3), 5)[12:] == 1).any()  # not behind the other
    swapped = maps.edited(
        numbers, np.eye(4), [maps.read_edit("swap_sides")], Classes(dict(enumerate("ABCD", 1)))
    )
    assert same_vessels(numbers, swapped) and (swapped == numbers[::-1]).all()
    dropped = maps.edited(numbers, np.eye(4), [maps.read_edit("drop:B")], Classes(dict(enumerate("ABCD", 1))))
    assert ((dropped == numbers) | (numbers == 2)).all() and not (dropped == 2).any()

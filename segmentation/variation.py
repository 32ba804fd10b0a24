"""Label maps varied: bent by a smooth random field, vessels wider or narrower, the same topology.

    varied(numbers, spacing, seed, mm=3.0, radius=0.1)

The field bends the volume's box onto itself: sine waves along each component's own axis, cosine waves along
the others, with the power of noise that a Gaussian of SMOOTH_MM has smoothed. No point moves by more than
`mm`, none crosses the border, and nothing folds: the Jacobian determinant, in closed form at every voxel, is
above LEAST_JACOBIAN. The radius of a class is multiplied by exp(`radius` g), g standard normal, cut at
MOST_SIGMAS.

Vessels of one voxel would break, and neighbours merge, if labels were looked up in the bent map. So the map
follows the field in steps of less than a voxel, and a voxel changes its class only where this changes the
topology of neither class nor of all vessels together (simple points, as in Han, Xu and Prince 2003,
doi:10.1109/TPAMI.2003.1206509), and makes or parts no neighbours: pieces, loops and cavities of every class,
and which classes touch, are those of the original by construction, and counted again at the end.
"""

import hashlib
import itertools
from dataclasses import dataclass, replace

from volumetric.cli import UserError
from volumetric.sidecars import volume_digest
from volumetric.vessels import EVERYWHERE, centre_line, is_simple

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from segmentation.maps import UNKNOWN, Variation, around, meetings, vessels_of
from segmentation.metrics import dice, touching

SMOOTH_MM = 8.0  # of the Gaussian that the field is as smooth as; its shortest wave has 17 mm
SHARPEST = 3.0  # of smoothness times wave number: the power of sharper waves is below 1e-3
LEAST_JACOBIAN = 0.2
MOST_SIGMAS = 2.0  # of the logarithm of a radius factor
STEP = 0.7  # voxels that the map follows the field by, at most, before voxels change
PASSES = 6  # over the voxels of a step, at most
DRAWS, SMALLER = 5, 0.7  # of one variation, at most; amplitudes of the next over those of the last
LEAST_FIT = 0.8  # Dice of the map with what field and factors ask for, whatever its topology
LAW = (
    f"field of sines and cosines, Gaussian power of {SMOOTH_MM:g} mm, longest displacement mm, box onto "
    f"itself; radii times exp(radius g), g normal within {MOST_SIGMAS:g}; drawn at most {DRAWS} times, each "
    f"with {SMALLER:g} of mm and radius of the one before"
)
VESSEL = bytes(int(n > 0) for n in range(256))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The field                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Field:
    """A displacement u in mm at every voxel, and how volumes change by x -> x + u(x).

    Args:
        mm: (3, X, Y, Z) float32, along the array's axes.
        longest: Length of the longest displacement.
        jacobian: Smallest determinant of I + du/dx.
    """

    mm: np.ndarray
    longest: float
    jacobian: float


def waves(number, count, size, sines):
    """Values and derivatives (1/mm) of the waves 0 .. count - 1 half periods long, at the centres of voxels.

    Shapes: -> (count, number), (count, number)
    """
    k = np.pi * np.arange(count)[:, None] / (number * size)
    phase = k * size * (np.arange(number) + 0.5)
    return (np.sin(phase), k * np.cos(phase)) if sines else (np.cos(phase), -k * np.sin(phase))


def summed(coefficients, bases):
    """Sum of products of waves along three axes. Shapes: (K, L, M), [(K, X), (L, Y), (M, Z)] -> (X, Y, Z)"""
    first, second, third = bases  # one by one, and not by a BLAS, whose sums depend on the number of threads
    found = np.einsum("xlm,ly->xym", np.einsum("klm,kx->xlm", coefficients, first), second)
    return np.einsum("xym,mz->xyz", found, third)


def drawn_field(shape, spacing, rng, mm):
    """A Field whose longest displacement is mm. Shapes: shape (3,), spacing (3,) mm"""
    lengths = np.multiply(shape, spacing)
    counts = 1 + np.maximum(1, np.floor(SHARPEST / SMOOTH_MM * lengths / np.pi)).astype(int)
    number = [np.pi * np.arange(count) / length for count, length in zip(counts, lengths, strict=True)]
    squared = sum(np.square(k) for k in np.meshgrid(*number, indexing="ij"))
    weights = np.exp(-squared * SMOOTH_MM**2 / 2)
    values, slopes = [], []
    for component in range(3):
        coefficients = weights * rng.standard_normal(weights.shape)
        of = [
            waves(*at, axis == component) for axis, at in enumerate(zip(shape, counts, spacing, strict=True))
        ]
        values.append(summed(coefficients, [value for value, _ in of]))
        for axis in range(3):
            slopes.append(summed(coefficients, [pair[int(n == axis)] for n, pair in enumerate(of)]))
    values = np.array(values, np.float32)
    scale = mm / np.sqrt(np.square(values).sum(axis=0).max())
    rows = (scale * np.array(slopes, np.float32)).reshape(3, 3, -1) + np.eye(3, dtype=np.float32)[..., None]
    determinant = (rows[0] * np.cross(rows[1], rows[2], axis=0)).sum(axis=0)
    return Field(scale * values, mm, float(determinant.min()))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Topology                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def topology(numbers):
    """What stays: {class: (pieces, loops, cavities)}, 0 for all vessels together, and which classes touch.

    Loops by the Euler characteristic of voxels with 26 neighbours: pieces - loops + cavities.

    Shapes: (X, Y, Z) uint8 -> ({class: three numbers}, {(class, class)})
    """
    from skimage.measure import euler_number

    found = {}
    for number in [0, *np.unique(numbers[numbers > 0]).tolist()]:
        mask = numbers == number if number else numbers > 0
        mask = np.pad(mask[around(mask, 0)], 1)
        pieces, cavities = ndimage.label(mask, EVERYWHERE)[1], ndimage.label(~mask)[1] - 1
        found[number] = (pieces, pieces + cavities - int(euler_number(mask, connectivity=3)), cavities)
    return found, touching(numbers)


class Kept:
    """A label map whose voxels change only where its topology stays, see the module.

    Args:
        numbers: (X, Y, Z) uint8.
    """

    def __init__(self, numbers):
        self.padded = np.pad(numbers, 1)
        self.only = {int(n): bytes(int(m == n) for m in range(256)) for n in np.unique(numbers)}
        self.contacts = {}
        for x, y, z in np.argwhere(numbers).tolist():
            near = self.padded[x : x + 3, y : y + 3, z : z + 3].tobytes()
            self.count(near, near[13], 1, self.contacts)
        self.contacts = {pair: number // 2 for pair, number in self.contacts.items()}  # seen from both sides

    @property
    def numbers(self):
        """The map as it is, (X, Y, Z) uint8."""
        return self.padded[1:-1, 1:-1, 1:-1]

    @staticmethod
    def count(near, number, sign, contacts):
        """Add to the contacts of a class what the middle of 27 voxels has of them, if it is of that class."""
        for other in {*near} - {0, number}:
            pair = (min(number, other), max(number, other))
            contacts[pair] = contacts.get(pair, 0) + sign * near.count(other)

    def change(self, place, new):
        """Give a voxel another class if that changes no topology; True if it did."""
        x, y, z = place
        near = self.padded[x : x + 3, y : y + 3, z : z + 3].tobytes()
        old = near[13]
        if (old == 0 or new == 0) and not is_simple(near.translate(VESSEL)):
            return False
        if any(number and not is_simple(near.translate(self.only[number])) for number in (old, new)):
            return False
        around, change = near[:13] + near[14:], {}
        for number, sign in ((old, -1), (new, 1)):
            if number:
                self.count(around, number, sign, change)
        after = {pair: self.contacts.get(pair, 0) + by for pair, by in change.items()}
        if any((self.contacts.get(pair, 0) > 0) != (number > 0) for pair, number in after.items()):
            return False
        self.contacts |= after
        self.padded[x + 1, y + 1, z + 1] = new
        return True

    def follow(self, wanted, order):
        """Change voxels to those of another map, as far as topology allows: vessels grow, then shrink.

        Shapes: wanted (X, Y, Z) uint8, order (X, Y, Z), the lowest come first and go last
        """
        for _ in range(PASSES):
            changed = 0
            for grow in (True, False):
                voxels = (wanted != self.numbers) & ((wanted > 0) == grow)
                places, values = np.argwhere(voxels), wanted[voxels]
                first = np.argsort(order[voxels] if grow else -order[voxels], kind="stable")
                for place, value in zip(places[first].tolist(), values[first].tolist(), strict=True):
                    changed += self.change(place, value)
            if not changed:
                return


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What is asked for                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Bent:
    """A label map, looked up where a field says, with vessels of other radii.

    Args:
        numbers: Class numbers without unknown voxels, (X, Y, Z) uint8; vessels and background are there.
        spacing: (3,) mm.
    """

    def __init__(self, numbers, spacing):
        vessels, half = numbers > 0, min(spacing) / 2
        inner = ndimage.distance_transform_edt(vessels, spacing)
        self.apart, nearest = ndimage.distance_transform_edt(~vessels, spacing, return_indices=True)
        signed = np.where(vessels, half - inner, self.apart - half)
        smooth = ndimage.gaussian_filter(signed, 0.5)  # orders voxels that are equally far from the edge
        signed = np.where(vessels, np.minimum(smooth, -0.1 * half), np.maximum(smooth, 0.1 * half))
        line = centre_line(vessels, spacing)
        for number in np.unique(numbers[vessels]):
            line |= meetings(numbers, number, inner)
        _, of_line = ndimage.distance_transform_edt(~line, spacing, return_indices=True)
        self.radius = np.maximum(inner - half, half)[tuple(of_line)]
        self.relative = signed / ndimage.gaussian_filter(self.radius, 1)  # -1 in the middle, 0 at the surface
        self.numbers, self.spacing, self.nearest = numbers, np.asarray(spacing), numbers[tuple(nearest)]
        self.line, self.classes, self.topology = np.argwhere(line), numbers[line], topology(numbers)

    def wanted(self, field, t, factors, anchors):
        """The map that a part t of a field asks for, topology aside.

        Every class gets as many voxels as its volume after bending, times its factor squared, has: those
        that lie deepest, in parts of the radius there. So a change of less than a voxel changes the volume.

        Args:
            field: Field.
            t: From 0 to 1.
            factors: Of the radii, (256,), by class number.
            anchors: (n, 3) voxels that the line's are at; they are kept.

        Returns:
            (Class numbers (X, Y, Z) uint8, relative signed distance there).
        """
        shape, wider = self.numbers.shape, self.radius.max() * (factors.max() - 1)
        places = np.array(np.nonzero(self.apart <= t * field.longest + wider + 2 * max(self.spacing)))
        at = places + t * np.array([u[tuple(places)] for u in field.mm]) / self.spacing[:, None]
        corners, weights = corners_of(at, shape)
        relative = (weights * self.relative.ravel()[corners]).sum(axis=0)
        number = winner(self.nearest.ravel()[corners], weights)
        voxels = np.bincount(self.numbers.ravel()[corners].ravel(), weights.ravel(), 256)
        held = np.zeros(shape, np.uint8)
        held[tuple(anchors.T)] = self.classes
        held = held[tuple(places)]
        number = np.where(held > 0, held, number)
        order = np.where(held > 0, -np.inf, relative)
        found = np.zeros(len(number), np.uint8)
        for one in np.unique(self.numbers[self.numbers > 0]):
            own = np.flatnonzero(number == one)
            count = round(voxels[one] * factors[one] ** 2)
            found[own[np.argsort(order[own], kind="stable")[:count]]] = one
        wanted, distance = np.zeros(shape, np.uint8), np.full(shape, np.inf)
        wanted[tuple(places)], distance[tuple(places)] = found, order
        return wanted, distance

    def moved(self, field, t, start):
        """Where the line's voxels go: x with x + t u(x) = p, iterated. Shapes: start (n, 3) -> the same"""
        at = start
        for _ in range(8):
            u = [ndimage.map_coordinates(one, at.T, order=1, mode="nearest") for one in field.mm]
            at = self.line - t * np.array(u).T / self.spacing
        return at


def corners_of(places, shape):
    """The eight voxels around places, those of the border beyond it. Shapes: (3, n) -> (8, n), (8, n)"""
    places = np.clip(places, 0, np.reshape(shape, (3, 1)) - 1)
    low = np.minimum(places.astype(int), np.maximum(np.reshape(shape, (3, 1)) - 2, 0))
    share, corners, weights = places - low, [], []
    for offset in np.ndindex(2, 2, 2):
        offset = np.reshape(offset, (3, 1))
        corners.append(np.ravel_multi_index(tuple(low + offset), shape, mode="clip"))
        weights.append(np.where(offset == 1, share, 1 - share).prod(axis=0))
    return np.array(corners), np.array(weights)


def winner(numbers, weights):
    """The class with most of the weight. Shapes: (8, n), (8, n) -> (n,)"""
    found = numbers[0].copy()
    mixed = np.flatnonzero((numbers != found).any(axis=0))
    votes = [(weights[:, mixed] * (numbers[:, mixed] == one)).sum(axis=0) for one in numbers[:, mixed]]
    found[mixed] = numbers[np.argmax(votes, axis=0), mixed] if mixed.size else 0
    return found


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ A variation                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def varied(numbers, spacing, seed, mm=3.0, radius=0.1, bent=None):
    """A variation of a label map; see the module. Unknown voxels are bent along, behind vessels.

    Args:
        numbers: Class numbers, (X, Y, Z) uint8.
        spacing: (3,) mm.
        seed: Alone decides what is drawn.
        mm: Longest displacement.
        radius: Standard deviation of the logarithm of a class's radius factor.
        bent: Of `bent_of`, which all variations of a map share; None makes it.

    Returns:
        (Class numbers (X, Y, Z) uint8, {"draws", and of the last one "mm", "radius", "radius_factors" by
        class number, "smallest_jacobian", "fit": Dice with what it asks for}), or (None, {"draws"}) if all
        draws fold, or leave the map too far from what they ask for.
    """
    bent = bent or bent_of(numbers, spacing)
    for draw in range(DRAWS if bent else 0):
        rng, share = np.random.default_rng([seed, draw]), SMALLER**draw
        field = drawn_field(numbers.shape, spacing, rng, share * mm)
        normal = np.clip(rng.standard_normal(256), -MOST_SIGMAS, MOST_SIGMAS)
        factors = np.exp(share * radius * normal)
        if field.jacobian < LEAST_JACOBIAN:
            continue
        found, wanted = followed(bent, field, factors)
        fit = dice_of_classes(found, wanted)
        if fit >= LEAST_FIT and topology(found) == bent.topology:
            used = {int(n): round(float(factors[n]), 4) for n in np.unique(bent.classes)}
            record = {"draws": draw + 1, "mm": share * mm, "radius": share * radius, "radius_factors": used}
            record |= {"smallest_jacobian": round(field.jacobian, 4), "fit": round(fit, 4)}
            return with_unknown(found, numbers, field, spacing), record
    return None, {"draws": DRAWS}


def bent_of(numbers, spacing):
    """Bent of a label map, without its unknown voxels; None if these are all vessels, or none."""
    plain = np.where(numbers == UNKNOWN, 0, numbers).astype(np.uint8)
    return Bent(plain, spacing) if plain.any() and not plain.all() else None


def followed(bent, field, factors):
    """The map of a Bent after a field, in steps, and what was asked for in the last of them."""
    kept, at = Kept(bent.numbers), bent.line.astype(float)
    steps = max(1, int(np.ceil((np.abs(field.mm).max(axis=(1, 2, 3)) / bent.spacing).max() / STEP)))
    limits, wanted = np.array(bent.numbers.shape) - 1, bent.numbers
    for step in range(1, 1 + steps):
        t = step / steps
        at = bent.moved(field, t, at)
        anchors = np.clip(np.rint(at), 0, limits).astype(int)
        wanted, order = bent.wanted(field, t, factors**t, anchors)
        kept.follow(wanted, order)
    return kept.numbers.copy(), wanted


def dice_of_classes(one, other):
    """2 |voxels of the same class| / (|vessels| + |vessels|). Shapes: two of (X, Y, Z) uint8"""
    both = int(((one == other) & (one > 0)).sum())
    return 2 * both / max(1, int((one > 0).sum() + (other > 0).sum()))


def with_unknown(found, numbers, field, spacing):
    """A varied map with the unknown voxels of the original where no vessel is, bent by nearest neighbour."""
    unknown = numbers == UNKNOWN
    if not unknown.any():
        return found
    at = np.indices(numbers.shape) + field.mm / np.reshape(spacing, (3, 1, 1, 1))
    there = ndimage.map_coordinates(unknown.astype(np.uint8), at, order=0, mode="nearest") > 0
    return np.where(there & (found == 0), np.uint8(UNKNOWN), found)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The maps of a folder                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_variation(config):
    """Raise a UserError if a LabelToVolumeConfig asks for variations of nothing, or without a change."""
    if config.vary and config.generate is None:
        raise UserError("--vary varies the label maps of --generate: give their folder.")
    alone = [
        name for name in ("vary_mm", "vary_radius") if getattr(config, name) != getattr(type(config), name)
    ]
    if alone and not config.vary:
        raise UserError(f"--{alone[0]} is of varied maps: give --vary too, how many of each map.")
    if config.vary and not config.vary_mm and not config.vary_radius:
        raise UserError("--vary_mm 0 and --vary_radius 0 leave maps as they are: give more of one.")


def seed_of(config, content, k):
    """Seed of variation k of a map: it follows from --seed, the map and k, whatever lies beside it."""
    return int(hashlib.sha256(f"{config.seed} {content} vary {k}".encode()).hexdigest()[:12], 16)


def variation_of(to_draw, k, asked, classes, bent=None):
    """Variation k of a MapToDraw, or None; `asked` has the seed, mm and radius of `varied`."""
    how = {name: asked[name] for name in ("seed", "mm", "radius")}
    found, drawn = varied(to_draw.numbers, nib.affines.voxel_sizes(to_draw.affine), **how, bent=bent)
    if found is None:
        return None
    factors = {classes.names[n - 1]: factor for n, factor in drawn["radius_factors"].items()}
    drawn |= {"of": to_draw.content, "radius_factors": factors}
    return replace(to_draw, numbers=found, variation=Variation(k, asked, drawn))


def varied_again(to_draw, recipe, classes):
    """The MapToDraw that a sidecar's recipe tells, {"k", "law", "seed", "mm", "radius"}; None: as it is.

    Raises:
        UserError: Another version drew it, by another law.
    """
    if recipe is None:
        return to_draw
    if recipe["law"] != LAW:
        raise UserError(f"--recreate: the map was varied by another law, {recipe['law']}: take that version.")
    again = variation_of(to_draw, recipe["k"], recipe, classes)
    if again is None:
        raise UserError("--recreate: this variation cannot be drawn again: its label map is another.")
    return again


def asked_variations(maps, config):
    """[(path, MapToDraw)] of all variations that are asked for, none of which is drawn; see below."""
    asked, found = {"law": LAW, "mm": config.vary_mm, "radius": config.vary_radius}, []
    for path, to_draw in maps.items():
        for k in range(1, 1 + config.vary):
            of = Variation(k, asked | {"seed": seed_of(config, to_draw.content, k)}, {})
            found.append((path, replace(to_draw, variation=of)))
    return found


def with_variations(maps, config, classes, tell=True):
    """Label maps as they are, or in place of each its variations 1, 2, ..., all different.

    Args:
        maps: {path: MapToDraw}.
        config: LabelToVolumeConfig; `vary` variations of each, `vary_mm`, `vary_radius`, `seed`.
        classes: Classes of the model.
        tell: Print what was left out, and how different the maps are.

    Returns:
        [(path, MapToDraw)].

    Raises:
        UserError: Nothing is left.
    """
    if not config.vary:
        return list(maps.items())
    found, left_out = [], []
    known = {volume_digest(to_draw.numbers) for to_draw in maps.values()}
    with tqdm(total=len(maps) * config.vary, desc="Varying maps", disable=not tell) as bar:
        for path, group in itertools.groupby(asked_variations(maps, config), lambda of: of[0]):
            to_draw = maps[path]
            bent = bent_of(to_draw.numbers, nib.affines.voxel_sizes(to_draw.affine))
            for _, wanted in group:
                k = wanted.variation.k
                one = variation_of(to_draw, k, wanted.variation.asked, classes, bent)
                if one is None:
                    why = f"{DRAWS} draws fold, or do not fit the grid" if bent else "it has no background"
                    left_out.append(f"{path}, variation {k}: {why}")
                elif volume_digest(one.numbers) in known:
                    left_out.append(f"{path}, variation {k}: equals another map")
                else:
                    known.add(volume_digest(one.numbers))
                    found.append((path, one))
                bar.update()
    if tell:
        for line in left_out:
            print(f"Left out: {line}.")
        print(told_of(found, maps, len(left_out)))
    if not found:
        raise UserError("--vary leaves no map: give another --vary_mm or --vary_radius.")
    return found


def told_of(found, maps, left_out):
    """A line on how different variations are: Dice of all vessels, with the originals and with the next."""
    vessels = [(path, vessels_of(one.numbers)) for path, one in found]
    with_own = [dice(mask, vessels_of(maps[path].numbers)) for path, mask in vessels]
    neighbours = itertools.pairwise(vessels)
    between = [dice(mask, other) for (path, mask), (next_path, other) in neighbours if path == next_path]
    again = sum(one.variation.drawn["draws"] > 1 for _, one in found)
    line = f"{len(found)} maps of {len(maps)}, no two the same, {again} of them drawn again with less, "
    line += f"{left_out} left out"
    line += f". Dice with their originals {np.mean(with_own):.2f}" if with_own else ""
    return line + (f", between two variations {np.mean(between):.2f}" if between else "") + "."

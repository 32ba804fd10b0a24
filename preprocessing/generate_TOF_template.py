"""Build a study template from TOF MRA scans: affine registration of all to one, the average, and again.

    python preprocessing/generate_TOF_template.py --data raw --output template
    python preprocessing/generate_TOF_template.py --data raw --output template --reference raw/sub-01.nii.gz

or edit the settings below and run it. Writes template.nii.gz and, with a source of brain masks,
template_mask.nii.gz and template_brain.nii.gz, all on the grid of the reference (axes turned to right,
anterior, superior), with template.json and a picture of the iterations.
"""

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

# Run as a script, the file preprocessing.py would hide the package of this name.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import read
from volumetric.files import atomic_path, clear_parts, locked, naming, part_of, write_json

import numpy as np
from scipy import ndimage

from preprocessing.images import Grid, grid_of, read_image, write_image
from preprocessing.masks import MaskSource, brain_mask, choose_source
from preprocessing.quality import draw_template
from preprocessing.registration import (
    COARSE_MM,
    TYPES,
    Likeness,
    align,
    at_spacing,
    covered_by,
    import_ants,
    resample,
)
from preprocessing.scans import audit, collect, summary
from preprocessing.workers import default_workers, in_words, open_workers, run_all

# Edit these, or pass them as flags; a flag wins.
# folder of raw scans
data = "raw"
# new folder
output = "template"
# scan whose grid and pose the template takes; None chooses a typical one
reference = None
# rounds of registration and average
iterations = 3
# of the registrations: 12 (affine) or 6 (rigid)
dof = 12
# by a Laplacian, at the end
sharpen = False

LEAST_SCANS = 2
SCAN_SECONDS = 17.0  # of a scan in a round, on a core of its own: the median of docs/preprocessing.md
SHARPNESS_MM = 1.5  # standard deviation of the filter that takes noise out of the measure
LEAST_SHARE = 0.5  # of the scans must cover a voxel of the template
FIGURES = ("iteration", "scans", "nmi", "sharpness", "change")


def check_registration(config, files):
    """Raise a UserError for a wrong --dof, a head without its mask, or a file that is not there.

    Args:
        config: TemplateConfig or PreprocessConfig.
        files: Names of the fields that hold a path or None.
    """
    if config.dof not in TYPES:
        raise UserError(f"--dof must be 6 (rigid) or 12 (affine), got {config.dof}.")
    if (config.brain_template is None) != (config.brain_mask is None):
        raise UserError("--brain_template and --brain_mask go together: give both or none.")
    for flag in files:
        path = getattr(config, flag)
        if path is not None and not Path(path).is_file():
            raise UserError(f"--{flag} {path} does not exist.")


@dataclass(kw_only=True)
class TemplateConfig:
    """Build a study template from TOF MRA scans."""

    data: str = option(
        data, "Folder of raw scans: NIfTI files, flat or one folder per subject, or DICOM series."
    )
    output: str = option(
        output, "New folder for template.nii.gz, its mask, template.json and template.png.", folder=True
    )
    pattern: str | None = option(
        None,
        "Names of the scans, as *_TOF*.nii.gz. None: all NIfTI files; of a BIDS tree *_angio* and *TOF*.",
    )
    series: str | None = option(
        None, "Text that the description of a DICOM series must contain; None takes all series."
    )
    reference: str | None = option(
        reference, "Scan whose grid and pose the template takes; None chooses a typical one."
    )
    spacing: float | None = option(
        None, "Voxel edge of the template in mm; None keeps the reference's voxels."
    )
    iterations: int = option(iterations, "Rounds of registration and average.")
    dof: int = option(dof, "12 (affine) or 6 (rigid).")
    sharpen: bool = option(sharpen, "Sharpen the last average by a Laplacian.")
    masks: str | None = option(None, "Folder of brain masks, named as the scans are.")
    brain_template: str | None = option(
        None, "Head of any contrast to take the brain mask from, such as MNI152 T1."
    )
    brain_mask: str | None = option(None, "Its brain mask.")
    n_workers: int | None = option(
        None, "Processes; None is one per core, as far as the memory goes for the largest scan.", least=1
    )
    scheduler: str | None = option(
        None, "Address of a running dask scheduler, tcp://host:port; None works on this machine."
    )

    def __post_init__(self):
        check_fields(self)
        check_registration(self, ("reference", "brain_template", "brain_mask"))


def choose_reference(scans, path=None):
    """The Scan that is given, or the most typical one: nearest to the median spacing and extent.

    Raises:
        UserError: The given file is not among the usable scans.
    """
    if path is not None:
        for scan in scans:
            if Path(scan.path).resolve() == Path(path).resolve():
                return scan
        raise UserError(f"--reference {path} is not among the usable scans of --data.")
    figures = np.log([[*s.spacing, *np.multiply(s.shape, s.spacing)] for s in scans])
    return scans[int(np.abs(figures - np.median(figures, axis=0)).sum(axis=1).argmin())]


def template_grid(scan, spacing=None):
    """Grid of a template: that of the reference with its axes turned to right, anterior and superior."""
    with naming(scan.path):
        volume = read(scan.path)
    own = volume.array.shape
    if spacing is None:
        return Grid(own, volume.affine)
    shape = tuple(int(np.ceil(n * edge / spacing)) for n, edge in zip(own, volume.spacing, strict=True))
    affine = volume.affine.copy()
    affine[:3, :3] *= spacing / volume.spacing
    middle = [(np.array(s) - 1) / 2 for s in (own, shape)]
    affine[:3, 3] += volume.affine[:3, :3] @ middle[0] - affine[:3, :3] @ middle[1]
    return Grid(shape, affine)


@dataclass(frozen=True)
class WarpJob:
    """One scan onto the present template; paths are absolute, `earlier` is the last iteration's matrix."""

    name: str
    path: str
    fixed: str
    part: str
    mask: str | None
    earlier: object
    dof: int


def warp(job):
    """Register a scan to the template and write it on the template's grid.

    The earlier transform stays if the new one is not more alike, so that iterations do not wander.

    Returns:
        (matrix, why it failed): without a reason, `job.part` holds the scan, its mean 1, where it covers the
        template, and its brain mask, if it has one.
    """
    try:
        fixed, scan = read_image(job.fixed, canonical=False), read_image(job.path)
        pair = at_spacing(fixed, COARSE_MM), at_spacing(scan, COARSE_MM)
        found = align(*pair, job.dof)
        matrix, problems = found.matrix, found.fit.problems()
        if job.earlier is not None and (problems or Likeness(*pair)(job.earlier)[0] >= found.fit.nmi):
            matrix, problems = job.earlier, []
        if problems:
            return None, "; ".join(problems)
        values = resample(scan, fixed, matrix).numpy() / pair[1].numpy().clip(0).mean()
        parts = {"values": values, "covered": covered_by(grid_of(scan), grid_of(fixed), matrix)}
        if job.mask is not None:
            parts["mask"] = resample(read_image(job.mask), fixed, matrix).numpy()
        np.savez(job.part, **parts)
        return matrix, ""
    except Exception as error:  # one scan must not stop the others
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def average(parts, key="values"):
    """Mean of the scans, in the order of `parts`, where at least LEAST_SHARE of them have voxels.

    Shapes: paths -> (X, Y, Z) float32
    """
    total, number = 0.0, 0
    for path in parts:
        with np.load(path) as part:
            total = total + part[key].astype(np.float64) * part["covered"]
            number = number + part["covered"].astype(np.int32)
    enough = number >= LEAST_SHARE * len(parts)
    return np.where(enough, total / np.maximum(number, 1), 0).astype(np.float32)


def sharpness(array, spacing):
    """Mean gradient magnitude over mean value, per mm, of what is larger than noise: blur lowers it.

    Shapes: (X, Y, Z), (3,) mm
    """
    values = ndimage.gaussian_filter(array.astype(np.float64), SHARPNESS_MM / np.asarray(spacing))
    inside = ndimage.binary_erosion(array > 0, iterations=3)
    gradient = np.linalg.norm(np.gradient(values, *spacing), axis=0)
    return float(gradient[inside].mean() / values[inside].mean())


def likeness(image, parts):
    """Mean normalised mutual information of an average and the scans that it is of."""
    values = []
    for path in parts:
        with np.load(path) as part:
            values.append(Likeness(image, image.new_image_like(part["values"]))(np.eye(4))[0])
    return float(np.mean(values))


def forecast(rounds, scans, at_once):
    """A line on how long the rounds will take."""
    seconds = rounds * np.ceil(scans / at_once) * SCAN_SECONDS
    return (
        f"Template: {rounds} rounds of {scans} scans, {min(at_once, scans)} at a time, take about "
        f"{in_words(seconds)} where each has a core for itself"
    )


def told(figures, scans):
    """A phrase on what a round gave."""
    return (
        f"{figures['scans']} of {scans} scans, mean normalised mutual information {figures['nmi']:.4f}, "
        f"sharpness {figures['sharpness']:.4f}, changed by {figures['change']:.1%}"
    )


def build_template(config, scans, workers):
    """Build a template and write it to `config.output`.

    Args:
        config: TemplateConfig.
        scans: List of Scan.
        workers: Of `open_workers`.

    Returns:
        Path of template.nii.gz.

    Raises:
        UserError: There are too few scans, or too few can be registered to the reference.
    """
    if len(scans) < LEAST_SCANS:
        raise UserError(
            f"--data {config.data} has {len(scans)} usable scans, a template needs {LEAST_SCANS}."
        )
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    first = choose_reference(scans, config.reference)
    grid = template_grid(first, config.spacing)
    image = resample(read_image(first.path), grid.image(), np.eye(4))
    image = image / image.numpy().clip(0).mean()
    figures, shown, matrices = [], [], {}
    print(forecast(config.iterations, len(scans), workers.number))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        for number in range(1, config.iterations + 1):
            title, start = f"Template, iteration {number}", time.monotonic()
            place = Path(scratch).resolve()
            matrices, left_out = register_all(config, scans, image, matrices, place, workers, title)
            parts = [place / f"{name}.npz" for name in matrices]
            if len(parts) < LEAST_SCANS:
                raise UserError(
                    f"{len(parts)} of {len(scans)} scans could be registered to {first.path} "
                    f"({next(iter(left_out.values()))}): give another --reference."
                )
            array = average(parts)
            change = float(np.linalg.norm(array - image.numpy()) / np.linalg.norm(array))
            image = grid.image().new_image_like(array)
            measured = (number, len(parts), likeness(image, parts), sharpness(array, image.spacing), change)
            figures.append(dict(zip(FIGURES, measured, strict=True)))
            shown.append(array)
            print(f"{title}: {told(figures[-1], len(scans))}, in {in_words(time.monotonic() - start)}")
        mask = average(parts, "mask") > 0.5 if config.masks is not None else None
    if config.sharpen:
        image = import_ants().iMath(image, "Sharpen")
    used = {s.name: s.digest for s in scans if s.name not in left_out}
    record = {"reference": str(first.path), "scans": used, "left_out": left_out, "iterations": figures}
    write_template(config, image, mask, record)
    draw_template(shown, grid.affine, folder / "template.png")
    return folder / "template.nii.gz"


def register_all(config, scans, image, earlier, scratch, workers, title):
    """Register every scan to the present template.

    Args:
        config: TemplateConfig.
        scans: List of Scan.
        image: ANTs image of the template.
        earlier: {name: matrix} of the last iteration.
        scratch: Folder for the scans on the template's grid, <name>.npz.
        workers: Of `open_workers`.
        title: What the progress bar says.

    Returns:
        ({name: matrix}, in the order of scans, {name: why a scan was left out}).
    """
    source = MaskSource("given", folder=config.masks)
    write_image(image.numpy(), grid_of(image).affine, scratch / "fixed.nii.gz")
    jobs = [
        WarpJob(
            name=scan.name,
            path=str(Path(scan.path).resolve()),
            fixed=str(scratch / "fixed.nii.gz"),
            part=str(scratch / f"{scan.name}.npz"),
            mask=None if config.masks is None else str(source.path_of(scan.name).resolve()),
            earlier=earlier.get(scan.name),
            dof=config.dof,
        )
        for scan in scans
    ]
    found = {}
    for job, result in run_all(workers, warp, jobs, title):
        found[job.name] = result or (None, "its worker was killed twice")
    left_out = {name: reason for name, (_, reason) in found.items() if reason}
    return {job.name: found[job.name][0] for job in jobs if job.name not in left_out}, left_out


def write_template(config, image, mask, record):
    """Write the template, its mask if there is a source of one, its record and, last, template.nii.gz."""
    folder, affine = Path(config.output), grid_of(image).affine
    if mask is None:
        try:
            source = choose_source(None, [(config.brain_template, config.brain_mask)])
        except UserError:
            source = None
        if source is not None:
            at_hand = part_of(folder / "unmasked.nii.gz")
            write_image(image.numpy(), affine, at_hand)
            small = brain_mask(source, "template", at_hand, image)
            at_hand.unlink()
            mask = resample(small, image, np.eye(4)).numpy() > 0.5
    if mask is not None:
        with atomic_path(folder / "template_mask.nii.gz") as part:
            write_image(mask.astype(np.uint8), affine, part, "brain mask")
        with atomic_path(folder / "template_brain.nii.gz") as part:
            write_image((image.numpy() * mask).astype(np.float32), affine, part, "TOF MRA template, brain")
    record |= {
        "settings": asdict(config),
        "versions": {name: version(name) for name in ("antspyx", "nibabel", "numpy", "scipy")},
    }
    write_json(folder / "template.json", record)
    with atomic_path(folder / "template.nii.gz") as part:
        write_image(image.numpy().astype(np.float32), affine, part, "TOF MRA template")


def main(argv=None):
    """The command line."""
    config = parse_cli(TemplateConfig, argv)
    with one_line_errors():
        folder = Path(config.output)
        if (folder / "template.nii.gz").exists():
            raise UserError(f"--output {folder} holds a template: give a new folder.")
        named, problems = collect(config.data, config.output, config.series, config.pattern, True)
        scans, wrong = audit(named)
        problems |= wrong
        for name, reason in sorted(problems.items()):
            print(f"left out: {name} {reason}", file=sys.stderr)
        print("\n".join(summary(scans)))
        if len(scans) < LEAST_SCANS:
            raise UserError(f"{len(scans)} of the scans can be used, at least {LEAST_SCANS} are needed.")
        choose_reference(scans, config.reference)
        largest = max(int(np.prod(scan.shape)) for scan in scans)
        number = min(config.n_workers or default_workers(largest), len(scans))
        with (
            locked(folder / ".lock", f"--output {folder}", "give another --output"),
            open_workers(config.scheduler, number) as workers,
        ):
            clear_parts(folder)
            path = build_template(config, scans, workers)
        mask = "with its brain mask" if (folder / "template_mask.nii.gz").exists() else "without a brain mask"
        print(f"The template is {path}, {mask}; look at {folder / 'template.png'}")


if __name__ == "__main__":
    main()

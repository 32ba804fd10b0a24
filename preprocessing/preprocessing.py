"""From a folder of raw TOF MRA scans to registered volumes around the Circle of Willis, for training.

    python preprocessing/preprocessing.py --data raw --output prepared --template template.nii.gz
    python preprocessing/preprocessing.py --data raw --output prepared --perform_skull_stripping False
    python preprocessing/preprocessing.py --output prepared --to_native segmentation.nii.gz --subject sub-01

or edit the settings below and run it. Without a template, one is built from the scans. Sections of this file:

    settings and configuration    every option
    one scan                      from reading it to its volume
    all scans                     the audit, resuming, the run
    back to the scanner           --to_native
    entry point

The steps are those of Aydin et al., NeuroImage 304 (2024) 120936, by ANTs in place of FSL and FreeSurfer, and
a second look at the region. How scans are checked is in scans.py, masks in masks.py, registration in
registration.py, pictures in quality.py, the template in generate_TOF_template.py. Raw scans are never
written to.
"""

import contextlib
import csv
import functools
import json
import re
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

# Run as a script, this file would hide the package of its name.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from preprocessing.cluster import default_workers, open_client, run_all
from preprocessing.generate_TOF_template import (
    TemplateConfig,
    build_template,
    check_registration,
    choose_reference,
    template_grid,
)
from preprocessing.images import (
    Grid,
    check_bounds,
    crop_or_pad,
    fitted,
    grid_of,
    read_image,
    to_ants,
    within,
    write_image,
)
from preprocessing.masks import brain_mask, choose_source, same_place
from preprocessing.quality import draw_match, write_page
from preprocessing.registration import (
    COARSE_MM,
    NMI_GATE,
    Registered,
    align,
    at_spacing,
    covered_by,
    look_again,
    normalized_mutual_information,
    resample,
    unbiased,
    write_transform,
)
from preprocessing.scans import audit, audit_scan, collect, summary
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.files import (
    __version__,
    atomic_path,
    check_array,
    clear_parts,
    file_digest,
    load_nifti,
    naming,
    read_json,
    reading,
)

# Edit these, or pass them as flags; a flag wins.
# folder of raw scans: NIfTI files, flat or one folder per subject, or DICOM series
data = "raw"
# folder for everything that is made; volumes/ in it is the training folder
output = "prepared"
# TOF template; None builds one from the scans
template = None
# its brain mask
template_mask = None
# voxels of a finished volume
target_size = (128, 128, 32)
# the region, in voxels of the template
cropping_bound_slices = ((80, 208), (120, 248), (40, 72))
perform_skull_stripping = True
perform_registration = True
# of the registration: 6 (rigid) or 12 (affine)
dof = 6
# N4
bias_correction = False
# processes; None is one per core, as far as the memory goes
n_workers = None
# address of a dask scheduler, tcp://host:port; None works on this machine
scheduler = None

INTERPOLATORS = {"linear": "linear", "bspline": "bSpline"}
ROI_MARGIN_MM = 4.0  # above and below the region, for the second look
LEAST_COVERED = 0.9  # of the region, by the scan
STRIPPED_ZEROS = 0.99  # share of zeros outside its mask by which a template counts as stripped
FOLDERS = ("volumes", "transforms", "masks", "qc", "sidecars")
STEPS = ("read", "bias", "mask", "register", "region", "resample", "picture", "write")
COLUMNS = ("subject", "file", "step", "nmi", "coverage", "seconds", "peak_mib", *STEPS, "reason")
NOT_SETTINGS = {"data", "output", "n_workers", "scheduler", "to_native", "subject"}
FILES = ("template", "template_mask", "brain_template", "brain_mask")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Settings and configuration                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class PreprocessConfig:
    """Turn raw TOF MRA scans into registered volumes of one region, ready for training.

    The same command given again continues.
    """

    data: str = option(
        data, "Folder of raw scans: NIfTI files, flat or one folder per subject, or DICOM series."
    )
    output: str = option(
        output,
        "Folder for volumes/, transforms/, masks/, sidecars/, status.csv and qc.html.",
        folder=True,
    )
    series: str | None = option(
        None, "Text that the description of a DICOM series must contain; None takes all series."
    )
    template: str | None = option(
        template,
        "Head or brain in TOF contrast that scans are registered to; None builds one from the scans.",
    )
    template_mask: str | None = option(
        template_mask, "Its brain mask. A template that is 0 outside it is matched with stripped scans."
    )
    target_size: tuple = option(
        target_size, "Voxels of a finished volume; the region is cropped or padded with zeros to it."
    )
    cropping_bound_slices: tuple = option(
        cropping_bound_slices,
        "The region ((x0, x1), (y0, y1), (z0, z1)), in voxels of the template as stored.",
    )
    perform_skull_stripping: bool = option(perform_skull_stripping, "Make brain masks.")
    masks: str | None = option(None, "Folder of brain masks, named as the scans are; None makes them.")
    brain_template: str | None = option(
        None, "Head of any contrast for brain masks, such as MNI152 T1; None takes the template."
    )
    brain_mask: str | None = option(None, "Its brain mask.")
    perform_registration: bool = option(
        perform_registration, "Register; False takes the scans as lying in the template's space."
    )
    dof: int = option(dof, "6 (rigid) or 12 (affine).")
    roi_stage: bool = option(
        True, "Register once more, rigidly, seeing the region alone; False is the published way."
    )
    nmi_gate: float = option(NMI_GATE, "Normalised mutual information below which a registration has failed.")
    bias_correction: bool = option(bias_correction, "Correct the bias field by N4.")
    interpolation: str = option("linear", "Of the one resampling.", choices=tuple(INTERPOLATORS))
    stripped: bool = option(False, "Crop the stripped scan; False crops the whole one, as published.")
    clip_percentiles: tuple = option(
        (), "Two percentiles of the volume to which its values are clipped; () clips nothing."
    )
    n_workers: int | None = option(
        n_workers, "Processes, of about 2 GiB each; None is one per core, as far as the memory goes."
    )
    scheduler: str | None = option(
        scheduler, "Address of a running dask scheduler, tcp://host:port; None works on this machine."
    )
    to_native: str | None = option(
        None, "A volume or label map of the region to carry back to the scanner's space."
    )
    subject: str | None = option(None, "The scan it belongs to; None takes the name of the file.")

    def __post_init__(self):
        check_fields(self)
        self.cropping_bound_slices = tuple(
            tuple(b) if isinstance(b, list | tuple) else b for b in self.cropping_bound_slices
        )
        size = self.target_size
        if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise UserError(f"--target_size must be three numbers of voxels, got {size}.")
        clip = self.clip_percentiles
        if clip and not (len(clip) == 2 and all(isinstance(p, int | float) for p in clip)):
            raise UserError(f"--clip_percentiles must be two numbers, got {clip}.")
        if clip and not 0 <= clip[0] < clip[1] <= 100:
            raise UserError(f"--clip_percentiles must rise, between 0 and 100, got {clip}.")
        if self.stripped and not self.perform_skull_stripping:
            raise UserError("--stripped needs --perform_skull_stripping.")
        if self.template is None and not self.perform_registration:
            raise UserError("--perform_registration False needs --template: its space is that of the scans.")
        if self.template is None and self.template_mask is not None:
            raise UserError("--template_mask is the mask of --template: give both.")
        check_registration(self, (*FILES, "to_native"))

    @property
    def folder(self):
        """Where everything is written."""
        return Path(self.output)

    def settings(self):
        """What decides the values of a volume, beside the scan, for settings.json."""
        kept = {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}
        for name in FILES:
            if kept[name] is not None:
                kept[name] = {"file": str(kept[name]), "sha256": file_digest(kept[name])}
        return json.loads(json.dumps(kept))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ One scan                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Job:
    """What a worker needs to know for one scan; `source` is a MaskSource or None, paths are absolute."""

    config: PreprocessConfig
    source: object
    template: str
    template_mask: str | None
    name: str
    path: str
    digest: str
    settings: dict


@dataclass
class Template:
    """What scans are registered to.

    Args:
        image: ANTs image, axes as stored.
        coarse: The same at COARSE_MM.
        stripped: It holds a brain alone.
        region: Grid of the region.
        box: ANTs image on the template's grid, 1 where the second look sees.
    """

    image: object
    coarse: object
    stripped: bool
    region: Grid
    box: object


@functools.lru_cache(maxsize=1)
def open_template(path, mask_path, bounds):
    """Template from its files; kept by a worker from scan to scan."""
    image = read_image(path, canonical=False)
    stripped = False
    if mask_path is not None:
        mask = same_place(read_image(mask_path, canonical=False), image, mask_path).numpy() > 0.5
        stripped = bool((image.numpy()[~mask] == 0).mean() > STRIPPED_ZEROS)
    margin = int(np.ceil(ROI_MARGIN_MM / image.spacing[2]))
    *in_plane, (low, high) = bounds
    box = np.zeros(image.shape, np.float32)
    box[within((*in_plane, (low - margin, high + margin)), image.shape)] = 1
    region = grid_of(image).crop(bounds)
    return Template(image, at_spacing(image, COARSE_MM), stripped, region, image.new_image_like(box))


class Steps:
    """The step under way and the seconds of each."""

    def __init__(self):
        self.now = "read"
        self.seconds = {}

    @contextlib.contextmanager
    def __call__(self, name):
        self.now = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 2)


def process(job):
    """Preprocess one scan; a failure becomes a reason. Returns its row of status.csv."""
    steps, found = Steps(), {}
    reason = ""
    try:
        process_steps(job, steps, found)
    except Exception as error:  # one scan must not stop the others
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
    unit = 1 if sys.platform == "darwin" else 1024
    row = {
        "subject": job.name,
        "file": job.path,
        "step": steps.now if reason else "done",
        "seconds": round(sum(steps.seconds.values()), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20,
        "reason": reason,
    }
    return {name: "" for name in COLUMNS} | steps.seconds | found | row


def process_steps(job, steps, found):
    """All steps of one scan; figures go into `found` as they come. Raises a UserError with the reason."""
    config, folder = job.config, job.config.folder
    with steps("read"):
        target = open_template(job.template, job.template_mask, config.cropping_bound_slices)
        scan = read_image(job.path)
    if config.bias_correction:
        with steps("bias"):
            scan = unbiased(scan)
    brain = None
    if config.perform_skull_stripping:
        with steps("mask"):
            brain = strip(job, scan)
    with steps("register"):
        result = match(scan, brain, target, config)
        found["nmi"] = round(result.nmi, 4)
    failed = config.perform_registration and result.nmi < config.nmi_gate
    if config.roi_stage and config.perform_registration and not failed:
        with steps("region"):
            moving = scan * brain if target.stripped else scan
            matrix = look_again(target.image, moving, result.matrix, target.box)
            result = Registered(matrix, result.nmi, result.start)
    with steps("resample"):
        volume, grid, covered = crop(scan, brain, target, result.matrix, config)
        found["coverage"] = round(covered, 3)
    with steps("picture"):
        draw_match(target.image, scan, result.matrix, grid, volume, folder / "qc" / f"{job.name}.png")
    steps.now = "register"
    if failed:
        raise UserError(
            f"normalised mutual information {result.nmi:.3f} after registration, expected at least "
            f"{config.nmi_gate:g}: look at qc/{job.name}.png; move the scan near the template by hand, or "
            f"lower --nmi_gate if the picture is right"
        )
    if covered < LEAST_COVERED:
        raise UserError(
            f"the scan covers {covered:.0%} of the region, expected at least {LEAST_COVERED:.0%}: its slab "
            f"ends too early, or --cropping_bound_slices are too wide"
        )
    if np.ptp(volume) == 0:
        raise UserError(f"the region is constant (every voxel {volume.flat[0]:g})")
    with steps("write"):
        write_results(job, result, volume, grid, covered)


def strip(job, scan):
    """Brain mask of a scan on its own grid, as ANTs image; written to masks/ on the raw scan's voxels."""
    import ants

    mask = brain_mask(job.source, job.name, job.path, scan)
    raw = load_nifti(Path(job.path))
    on_raw = ants.resample_image_to_target(mask, Grid(raw.shape, raw.affine).image(), interp_type="linear")
    with atomic_path(job.config.folder / "masks" / f"{job.name}.nii.gz") as part:
        write_image((on_raw.numpy() > 0.5).astype(np.uint8), raw.affine, part, "brain mask")
    on_scan = ants.resample_image_to_target(mask, scan, interp_type="linear")
    return scan.new_image_like((on_scan.numpy() > 0.5).astype(np.float32))


def match(scan, brain, target, config):
    """Registered: the scan and the template, a whole head with a whole head, a brain with a brain."""
    coarse = at_spacing(scan * brain if target.stripped else scan, COARSE_MM)
    if config.perform_registration:
        return align(target.coarse, coarse, config.dof, config.nmi_gate)
    return Registered(np.eye(4), normalized_mutual_information(target.coarse, coarse, np.eye(4)), "as it is")


def crop(scan, brain, target, matrix, config):
    """The region of a scan, resampled once from its own voxels to the template's.

    Returns:
        (float32 array of target_size, its Grid, share of the region that the scan covers).
    """
    image = scan * brain if config.stripped else scan
    region = target.region
    interpolator = INTERPOLATORS[config.interpolation]
    array = resample(image, region.image(), matrix, interpolator).numpy()
    covered = covered_by(scan, region.image(), matrix).mean()
    if config.clip_percentiles:
        array = array.clip(*np.percentile(array, config.clip_percentiles))
    bounds = fitted(region.shape, config.target_size)
    return crop_or_pad(array, bounds).astype(np.float32), region.crop(bounds), float(covered)


def write_results(job, result, volume, grid, covered):
    """Write transform, volume and, last, the sidecar that says that the scan is finished."""
    folder, name = job.config.folder, job.name
    with atomic_path(folder / "transforms" / f"{name}.mat") as part:
        write_transform(result.matrix, part)
    path = folder / "volumes" / f"{name}.nii.gz"
    with atomic_path(path) as part:
        write_image(volume, grid.affine, part, f"TOF MRA region, preprocessing {__version__}")
    raw = load_nifti(Path(job.path))
    record = {
        "subject": name,
        "source": {"file": job.path, "sha256": job.digest, "shape": raw.shape, "affine": raw.affine.tolist()},
        "volume": {"sha256": file_digest(path), "shape": volume.shape, "affine": grid.affine.tolist()},
        "transform": {
            "template_to_scan_ras_mm": result.matrix.tolist(),
            "normalized_mutual_information": result.nmi,
            "start": result.start,
        },
        "coverage": covered,
        "mask": None if job.source is None else job.source.way,
        "settings": job.settings,
        "versions": {name: version(name) for name in ("antspyx", "nibabel", "numpy", "scipy")},
    }
    with atomic_path(folder / "sidecars" / f"{name}.json") as part:
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ All scans                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_image(config, flag):
    """Raise a UserError unless a template is sound, on the grid that the bounds expect, as its mask is."""
    path = getattr(config, flag)
    try:
        audit_scan(flag, path)
    except UserError as error:
        raise UserError(f"--{flag} {path} {error}.") from None
    image = load_nifti(Path(path))
    if flag == "template":
        check_bounds(config.cropping_bound_slices, Grid(image.shape, image.affine), f"--template {path}")
    mask = config.template_mask if flag == "template" else config.brain_mask
    if mask is not None:
        same_place(read_image(mask), read_image(path), mask)


def same_settings(config, settings):
    """Note the settings in the output folder; a UserError if what lies there was made with others."""
    path = config.folder / "settings.json"
    if not path.exists():
        for name in FOLDERS:
            (config.folder / name).mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            part.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return
    earlier = read_json(path)
    changed = [
        f"{name} {earlier.get(name)} then, {settings.get(name)} now"
        for name in sorted(earlier.keys() | settings.keys())
        if earlier.get(name) != settings.get(name)
    ]
    if changed:
        raise UserError(
            f"{config.output} was made with other settings ({'; '.join(changed)}): give another --output."
        )


def read_status(folder):
    """Rows of status.csv, {subject: row}."""
    path = folder / "status.csv"
    if not path.exists():
        return {}
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def write_status(rows, folder):
    """Write status.csv, subjects in order."""
    with (
        atomic_path(folder / "status.csv") as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows[name] for name in sorted(rows))


def finished(scan, folder):
    """True if a scan's volume is there and whole.

    Raises:
        UserError: The scan is not the one that the volume was made of.
    """
    sidecar, volume = folder / "sidecars" / f"{scan.name}.json", folder / "volumes" / f"{scan.name}.nii.gz"
    if not (sidecar.exists() and volume.exists()):
        return False
    record = read_json(sidecar)
    with reading(sidecar):
        source, made = record["source"]["sha256"], record["volume"]["sha256"]
    if source != scan.digest:
        raise UserError(f"has changed since its volume was made: remove {sidecar} to make it again")
    return file_digest(volume) == made


def make_template(config, scans, client):
    """Path of the template built from the scans; one that an earlier call built is kept."""
    path = config.folder / "template" / "template.nii.gz"
    if not path.exists():
        settings = TemplateConfig(
            data=config.data,
            output=str(path.parent),
            masks=config.masks if config.perform_skull_stripping else None,
            brain_template=config.brain_template,
            brain_mask=config.brain_mask,
            nmi_gate=config.nmi_gate,
        )
        build_template(settings, scans, client)
    return path


def blank_row(name, path, step, reason):
    """A row of status.csv for a scan that did not come to a worker's end."""
    known = {"subject": name, "file": str(path), "step": step, "reason": reason}
    return {column: "" for column in COLUMNS} | known


def prepare(config):
    """Everything that can be checked before the first scan is worked on.

    Returns:
        (scans to do, {subject: row} of the others, MaskSource or None, settings).

    Raises:
        UserError: Nothing can be done.
    """
    source = None
    if config.perform_skull_stripping:
        heads = [(config.brain_template, config.brain_mask), (config.template, config.template_mask)]
        source = choose_source(config.masks, heads)
    for flag in ("template", "brain_template"):
        if getattr(config, flag) is not None:
            check_image(config, flag)
    named, problems = collect(config.data, config.output, config.series)
    scans, wrong = audit(named)
    problems |= wrong
    if config.template is None and scans:
        grid = template_grid(choose_reference(scans))
        check_bounds(config.cropping_bound_slices, grid, "The template, built on the grid of a scan,")
    settings = config.settings()
    same_settings(config, settings)
    for part in {path.parent for path in config.folder.rglob(".part-*")}:
        clear_parts(part)
    earlier = read_status(config.folder)
    rows = {name: blank_row(name, named.get(name, ""), "audit", reason) for name, reason in problems.items()}
    to_do = []
    for scan in scans:
        try:
            if finished(scan, config.folder):
                rows[scan.name] = earlier.get(scan.name) or blank_row(scan.name, scan.path, "done", "")
            else:
                to_do.append(scan)
        except UserError as error:
            rows[scan.name] = blank_row(scan.name, scan.path, "audit", str(error))
    print("\n".join(summary(scans)))
    for name, reason in sorted(problems.items()):
        print(f"left out: {name} {reason}", file=sys.stderr)
    return to_do, rows, source, settings


def preprocess(config):
    """Preprocess all scans of a folder, and go on where an earlier call stopped.

    Args:
        config: PreprocessConfig.

    Returns:
        Rows of status.csv, {subject: row}; `step` is done, or the step that failed for `reason`.

    Raises:
        UserError: The settings, the template or the folder cannot be used; no scan was worked on.
    """
    to_do, rows, source, settings = prepare(config)
    folder = config.folder
    write_status(rows, folder)
    if to_do:
        with open_client(config.scheduler, min(config.n_workers or default_workers(), len(to_do))) as client:
            template = config.template or make_template(config, to_do, client)
            jobs = [
                Job(
                    config=replace(config, output=str(folder.resolve())),
                    source=source,
                    template=str(Path(template).resolve()),
                    template_mask=config.template_mask and str(Path(config.template_mask).resolve()),
                    name=scan.name,
                    path=str(Path(scan.path).resolve()),
                    digest=scan.digest,
                    settings=settings,
                )
                for scan in to_do
            ]
            for job, row in run_all(client, process, jobs, "Preprocessing", folder):
                killed = "its worker was killed twice, most likely for want of memory: fewer --n_workers"
                rows[job.name] = row or blank_row(job.name, job.path, "killed", killed)
                write_status(rows, folder)
    write_page(list(rows.values()), folder)
    return rows


def report(rows, folder):
    """Print what was done and what was not."""
    failed = {name: row for name, row in sorted(rows.items()) if row["step"] != "done"}
    for name, row in failed.items():
        print(f"failed: {name} ({row['step']}) {row['reason']}", file=sys.stderr)
    done = len(rows) - len(failed)
    print(f"{done} of {len(rows)} scans are in {folder / 'volumes'}; look at {folder / 'qc.html'}")
    return len(failed)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Back to the scanner                                                                                      ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def to_native(config):
    """Carry a volume or label map of the region back to the voxels of the raw scan; zeros elsewhere.

    Whole numbers are taken for labels (nearest neighbour), others are interpolated linearly.

    Returns:
        Path of the new file, native/<subject>_<file> in the output folder.

    Raises:
        UserError: The subject is not known, the file is not of its region, or the result is there already.
    """
    path = Path(config.to_native)
    subject = config.subject or re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    sidecar = config.folder / "sidecars" / f"{subject}.json"
    if not sidecar.exists():
        raise UserError(
            f"{config.output} has no finished scan {subject!r} (no {sidecar}): name it with --subject."
        )
    record = read_json(sidecar)
    with reading(sidecar):
        expected, raw = (
            Grid(tuple(record[key]["shape"]), np.array(record[key]["affine"], dtype=float))
            for key in ("volume", "source")
        )
        matrix = np.linalg.inv(record["transform"]["template_to_scan_ras_mm"])
    with naming(f"--to_native {path}"):
        image = load_nifti(path, check_array)
    same_place(to_ants(np.zeros(image.shape), image.affine), expected.image(), path)
    labels = image.get_data_dtype().kind in "iu"
    values = to_ants(image.get_fdata(dtype=np.float32), image.affine)
    array = resample(values, raw.image(), matrix, "nearestNeighbor" if labels else "linear").numpy()
    folder = config.folder / "native"
    folder.mkdir(exist_ok=True)
    target = folder / f"{subject}_{path.name}"
    if target.exists():
        raise UserError(f"{target} is there already: move it away.")
    with atomic_path(target) as part:
        kind = image.get_data_dtype() if labels else np.float32
        write_image(array.astype(kind), raw.affine, part, "from the region to the scanner")
    return target


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def main(argv=None):
    """The command line; exits with 1 if any scan failed."""
    config = parse_cli(PreprocessConfig, argv)
    with one_line_errors():
        if config.to_native is not None:
            print(f"Written: {to_native(config)}")
            return
        rows = preprocess(config)
    if report(rows, config.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

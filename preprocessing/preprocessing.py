"""From a folder of raw TOF MRA scans to registered volumes around the Circle of Willis, for training.

    python preprocessing/preprocessing.py --data raw --output prepared --template template.nii.gz
    python preprocessing/preprocessing.py --data raw --output prepared --region_center 0,-5,-12
    python preprocessing/preprocessing.py --output prepared --to_region labels
    python preprocessing/preprocessing.py --output prepared --to_native segmentation.nii.gz --subject sub-01
    python preprocessing/preprocessing.py --output prepared --to_dicom volume.nii.gz

or edit the settings below and run it. Without a template, one is built from the scans. Sections of this file:

    settings and configuration    every option
    one scan                      from reading it to its volume
    all scans                     the audit, resuming, the run, what is flagged
    entry point

The steps are those of Aydin et al., NeuroImage 304 (2024) 120936, by ANTs in place of FSL and FreeSurfer, and
a second look at the region. How scans are checked is in scans.py, masks in masks.py, registration and what
tells that it is right in registration.py, the region in region.py, the output folder in books.py, pictures in
quality.py, the template in generate_TOF_template.py, label maps between scan and volume in carry.py. Raw
scans are never written to.
"""

import contextlib
import functools
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

# Run as a script, this file would hide the package of its name.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric import __version__
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import read
from volumetric.dicom_writing import KINDS
from volumetric.files import (
    SYNTHETIC,
    atomic_path,
    clear_parts,
    file_digest,
    is_marked_synthetic,
    load_nifti,
    locked,
    naming,
    write_json,
)

import numpy as np

from preprocessing import books
from preprocessing.bids import write_bids
from preprocessing.carry import TO_NATIVE, TO_REGION, carry
from preprocessing.dicom_export import to_dicom
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
    check_percentiles,
    grid_of,
    read_image,
    stored_grid,
    to_ants,
    write_image,
)
from preprocessing.initial import check_starts, start_of
from preprocessing.judgement import judge
from preprocessing.masks import TOOLS, brain_mask, is_stripped, needed_source, same_place
from preprocessing.quality import draw_match, write_page
from preprocessing.region import (
    check_millimetres,
    choose_region,
    place_region,
    to_target,
    vessels_of,
    volume_grid,
)
from preprocessing.registration import (
    COARSE_MM,
    DISTINCT,
    Likeness,
    Registered,
    align,
    assess,
    at_spacing,
    covered_by,
    look_again,
    read_transform,
    resample,
    unbiased,
    write_transform,
)
from preprocessing.scans import audit, audit_scan, collect, summary
from preprocessing.workers import default_workers, open_workers, run_all

# Edit these, or pass them as flags; a flag wins.
# folder of raw scans: NIfTI files, flat, one folder per subject or BIDS, or DICOM series
data = "raw"
# folder for everything that is made; volumes/ in it is the training folder
output = "prepared"
# TOF template; None builds one from the scans
template = None
# its brain mask
template_mask = None
# middle of the region in the template, mm right, front and up; None finds the circle of Willis
region_center = None
# edges of the region, mm
region_size = (80.0, 80.0, 28.0)
# voxels of a finished volume
target_size = (128, 128, 32)
# the region in voxels of the template, in place of mm; published: ((80, 208), (120, 248), (40, 72))
cropping_bound_slices = None
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
NOT_SETTINGS = {"data", "output", "pattern", "n_workers", "scheduler", "subject", "nmi_gate", "distinct"}
NOT_SETTINGS |= {"bids_output", "initial", "deface", "to_native", "to_region", "allow_synthetic"}
NOT_SETTINGS |= {"to_dicom", "dicom_format"}
FILES = ("template", "template_mask", "brain_template", "brain_mask")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Settings and configuration                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_there(flag, path):
    """Raise a UserError unless there is a file or folder."""
    if not Path(path).exists():
        raise UserError(f"{flag} {path} does not exist.")


@dataclass(kw_only=True)
class PreprocessConfig:
    """Turn raw TOF MRA scans into registered volumes of one region, ready for training.

    The same command given again continues.
    """

    data: str = option(
        data, "Folder of raw scans: NIfTI files, flat, one folder per subject or BIDS, or DICOM series."
    )
    pattern: str | None = option(
        None,
        "Names of the scans, as *_TOF*.nii.gz. None: all NIfTI files; of a BIDS tree *_angio* and *TOF*.",
    )
    output: str = option(
        output,
        "Folder for volumes/, flagged/, withdrawn/, transforms/, sidecars/, status.csv and qc.html.",
        folder=True,
    )
    series: str | None = option(
        None, "Text that the description of a DICOM series must contain; None takes all series."
    )
    allow_synthetic: bool = option(False, "Take scans that are marked as synthetic: no patient's.")
    template: str | None = option(
        template,
        "Head or brain in TOF contrast that scans are registered to; None builds one from the scans.",
    )
    template_mask: str | None = option(
        template_mask, "Its brain mask. A template that is 0 outside it is matched with stripped scans."
    )
    region_center: tuple | None = option(
        region_center, "Middle of the region in the template, mm; None finds the circle of Willis."
    )
    region_size: tuple = option(region_size, "Edges of the region, mm to the right, front and up.")
    target_size: tuple = option(target_size, "Voxels of a finished volume.")
    cropping_bound_slices: tuple | None = option(
        cropping_bound_slices,
        "The region ((x0, x1), (y0, y1), (z0, z1)) in voxels of the template as stored, in place of mm, "
        "cropped or padded with zeros to --target_size.",
    )
    perform_skull_stripping: bool = option(
        perform_skull_stripping, "Make brain masks where they are read: --stripped, or a stripped template."
    )
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
    initial: str | None = option(
        None, "Folder of starts by hand, ITK transforms <scan>.mat, .txt or .tfm from template to scan."
    )
    distinct: float = option(
        DISTINCT,
        "How much better than displaced by 10 mm or degrees a registration must be.",
        least=1,
        most=99,
    )
    nmi_gate: float = option(
        1.0, "Normalised mutual information below which a scan is flagged; 1 flags none.", least=1, most=2
    )
    bias_correction: bool = option(bias_correction, "Correct the bias field by N4.")
    harmonise: bool = option(False, "Match the histogram of each volume to the template's region.")
    interpolation: str = option("linear", "Of the one resampling.", choices=tuple(INTERPOLATORS))
    stripped: bool = option(False, "Crop the stripped scan; False crops the whole one, as published.")
    clip_percentiles: tuple = option(
        (), "Two percentiles of the volume to which its values are clipped; () clips nothing."
    )
    bids_output: bool = option(False, "Also lay the volumes out as BIDS derivatives, in bids/.")
    deface: bool = option(False, "Pictures show the surroundings of the region alone.")
    n_workers: int | None = option(
        n_workers, "Processes; None is one per core, as far as the memory goes for the largest scan.", least=1
    )
    scheduler: str | None = option(
        scheduler, "Address of a running dask scheduler, tcp://host:port; None works on this machine."
    )
    to_region: str | None = option(
        None,
        "A volume or label map of a raw scan to carry onto its prepared volume, to region/; or a folder of "
        "label maps named as the scans, to labels/.",
        check=check_there,
    )
    to_native: str | None = option(
        None,
        "A volume or label map of the region to carry back to the scanner's space, to native/; or a folder "
        "of label maps named as the volumes.",
        check=check_there,
    )
    to_dicom: str | None = option(
        None, "A volume, native or synthetic, to write as DICOM, in dicom/.", file=True
    )
    dicom_format: str = option("enhanced", "Of --to_dicom.", choices=KINDS)
    subject: str | None = option(
        None, "The scan that the file belongs to, and its PatientID; None takes the file's name."
    )

    def __post_init__(self):
        check_fields(self)
        if self.cropping_bound_slices is not None:
            self.cropping_bound_slices = tuple(
                tuple(b) if isinstance(b, list | tuple) else b for b in self.cropping_bound_slices
            )
        for flag in ("region_center", "region_size"):
            check_millimetres(flag, getattr(self, flag))
        size = self.target_size
        if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise UserError(f"--target_size must be three numbers of voxels, got {size}.")
        check_percentiles("--clip_percentiles", self.clip_percentiles)
        if self.stripped and not self.perform_skull_stripping:
            raise UserError("--stripped needs --perform_skull_stripping.")
        if self.template is None and not self.perform_registration:
            raise UserError("--perform_registration False needs --template: its space is that of the scans.")
        if self.template is None and self.template_mask is not None:
            raise UserError("--template_mask is the mask of --template: give both.")
        if self.initial is not None and not Path(self.initial).is_dir():
            raise UserError(f"--initial {self.initial} does not exist: give the folder of the transforms.")
        if sum(way is not None for way in (self.to_region, self.to_native, self.to_dicom)) > 1:
            raise UserError("--to_region, --to_native and --to_dicom are three ways: give one of them.")
        check_registration(self, FILES)

    @property
    def region_voxels(self):
        """Voxels of the largest image that a worker makes, beside the scan: the template's."""
        return 0 if self.template is None else int(np.prod(load_nifti(Path(self.template)).shape))

    @property
    def folder(self):
        """Where everything is written."""
        return Path(self.output)

    def settings(self, source=None):
        """What decides the values of a volume, beside the scan, for settings.json; `source` makes masks."""
        kept = {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}
        kept["mask_way"] = None if source is None else source.way
        for name in FILES:
            if kept[name] is not None:
                kept[name] = {"file": str(kept[name]), "sha256": file_digest(kept[name])}
        return json.loads(json.dumps(kept))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ One scan                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Job:
    """What a worker needs to know for one scan.

    Args:
        config: PreprocessConfig, its output an absolute path.
        source: MaskSource, or None: no mask is read.
        template: Absolute path.
        stripped: The template is of a brain alone.
        region: Shape and affine of the region, as tuples.
        mirror: Of `mirror_of` the template, as tuples.
        name, path: Of the scan, absolute.
        inputs: {scan, mask, initial}: digests of what the volume is made of.
        initial: Path of a start by hand, or None.
        settings: For the sidecar.
    """

    config: PreprocessConfig
    source: object
    template: str
    stripped: bool
    region: tuple
    mirror: tuple
    name: str
    path: str
    inputs: dict
    initial: str | None
    settings: dict


@dataclass
class Template:
    """What scans are registered to.

    Args:
        image: ANTs image, axes as stored.
        coarse: The same at COARSE_MM.
        region: Grid of the region.
        box: ANTs image on the template's grid, 1 where the second look sees.
        volume: (X, Y, Z), the template's own region.
    """

    image: object
    coarse: object
    region: Grid
    box: object
    volume: np.ndarray


@functools.lru_cache(maxsize=1)
def open_template(path, region, target_size):
    """Template from its file, and the region's shape and affine; kept by a worker from scan to scan."""
    image = read_image(path, canonical=False)
    region = Grid(region[0], np.array(region[1]))
    margin = int(np.ceil(ROI_MARGIN_MM / np.linalg.norm(region.affine[:3, 2])))
    wider = region.crop((*((0, n) for n in region.shape[:2]), (-margin, region.shape[2] + margin)))
    box = covered_by(wider, grid_of(image), np.eye(4)).astype(np.float32)
    volume = to_target(resample(image, region.image(), np.eye(4)).numpy(), target_size)
    return Template(image, at_spacing(image, COARSE_MM), region, image.new_image_like(box), volume)


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
    """Preprocess one scan, its volume to flagged/; a failure becomes a reason. Returns its row."""
    steps, found = Steps(), {}
    reason = ""
    try:
        process_steps(job, steps, found)
    except Exception as error:  # one scan must not stop the others
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
    unit = 1 if sys.platform == "darwin" else 1024
    known = {
        "seconds": round(sum(steps.seconds.values()), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20,
    }
    row = books.row_of(job.name, job.path, steps.now if reason else "done", reason)
    return row | steps.seconds | found | known


def process_steps(job, steps, found):
    """All steps of one scan; figures go into `found` as they come. Raises a UserError with the reason."""
    config, folder = job.config, job.config.folder
    with steps("read"):
        target = open_template(job.template, job.region, config.target_size)
        with naming(job.path):
            source = read(job.path, scan=True)
        raw, whole = stored_grid(source), to_ants(source.array, source.affine)
        scan = whole
    if config.bias_correction:
        with steps("bias"):
            scan = unbiased(scan)
    brain = None
    if job.source is not None:
        with steps("mask"):
            brain = strip(job, scan, raw)
    with steps("register"):
        moving = scan * brain if job.stripped else scan
        result = match(moving, target, job)
        found |= {"nmi": round(result.fit.nmi, 4), "distinct": round(result.fit.distinct, 3)}
        found |= {"overlap": round(result.fit.overlap, 3)}
    if config.roi_stage and config.perform_registration and not result.fit.problems(distinct=config.distinct):
        with steps("region"):
            result = replace(result, matrix=look_again(target.image, moving, result.matrix, target.box))
    with steps("resample"):
        image = scan * brain if config.stripped else scan
        volume, covered = crop(image, target, result.matrix, config)
        grid = volume_grid(target.region, config.target_size)
        vessels = vessels_of(volume, grid.affine)
        found |= {"coverage": round(covered, 3), "vessels": round(vessels.share, 5)}
    with steps("picture"):
        draw_match(target, whole, result.matrix, grid, volume, folder / "qc", job.name, config.deface)
    if np.ptp(volume) == 0:
        steps.now = "resample"
        raise UserError(f"the region is constant (every voxel {volume.flat[0]:g})")
    with steps("write"):
        measured = {"coverage": covered, "vessels": asdict(vessels)}
        write_results(job, result, raw, volume, grid, measured)


def strip(job, scan, raw):
    """Brain mask of a scan on its own grid, as ANTs image; written to masks/ on the raw scan's Grid."""
    import ants

    mask = brain_mask(job.source, job.name, job.path, scan)
    on_raw = ants.resample_image_to_target(mask, raw.image(), interp_type="linear")
    with atomic_path(job.config.folder / "masks" / f"{job.name}.nii.gz") as part:
        write_image((on_raw.numpy() > 0.5).astype(np.uint8), raw.affine, part, "brain mask")
    on_scan = ants.resample_image_to_target(mask, scan, interp_type="linear")
    return scan.new_image_like((on_scan.numpy() > 0.5).astype(np.float32))


def match(moving, target, job):
    """Registered: the scan, or its brain, and the template."""
    coarse, mirror = at_spacing(moving, COARSE_MM), np.array(job.mirror)
    if job.config.perform_registration:
        initial = None if job.initial is None else read_transform(job.initial)
        return align(target.coarse, coarse, job.config.dof, mirror=mirror, initial=initial)
    return Registered(np.eye(4), assess(Likeness(target.coarse, coarse), np.eye(4), mirror), "as it is")


def crop(image, target, matrix, config):
    """The region of an ANTs image, resampled once from its own voxels.

    Returns:
        (float32 array of target_size, share of the region that the image covers).
    """
    region = target.region
    array = resample(image, region.image(), matrix, INTERPOLATORS[config.interpolation]).numpy()
    covered = covered_by(grid_of(image), region, matrix).mean()
    if config.clip_percentiles:
        array = array.clip(*np.percentile(array, config.clip_percentiles))
    if config.harmonise:
        from skimage.exposure import match_histograms

        array = match_histograms(array, target.volume)
    return to_target(array, config.target_size), float(covered)


def write_results(job, result, raw, volume, grid, measured):
    """Write transform, volume and, last, the sidecar that says that the scan is finished."""
    folder, name = job.config.folder, job.name
    with atomic_path(folder / "transforms" / f"{name}.mat") as part:
        write_transform(result.matrix, part)
    raw = load_nifti(Path(job.path))
    mark = f"{SYNTHETIC} " if is_marked_synthetic(raw.header) else ""
    path = folder / "flagged" / f"{name}.nii.gz"
    with atomic_path(path) as part:
        write_image(volume, grid.affine, part, f"{mark}TOF MRA region, preprocessing {__version__}")
    record = {
        "subject": name,
        "inputs": job.inputs,
        "source": {"file": job.path, "shape": raw.shape, "affine": raw.affine.tolist()},
        "volume": {"sha256": file_digest(path), "shape": volume.shape, "affine": grid.affine.tolist()},
        "transform": {"template_to_scan_ras_mm": result.matrix.tolist(), "start": result.start},
        "fit": asdict(result.fit),
        **measured,
        "mask": None if job.source is None else job.source.way,
        "settings": job.settings,
        "versions": versions(),
    }
    write_json(folder / "sidecars" / f"{name}.json", record)


def versions():
    """Of what the numbers depend on."""
    return {name: version(name) for name in ("antspyx", "nibabel", "numpy", "scipy")}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ All scans                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_image(config, flag):
    """Raise a UserError unless a head is sound, and its mask on its grid."""
    path = getattr(config, flag)
    try:
        audit_scan(flag, path)
    except UserError as error:
        raise UserError(f"--{flag} {path} {error}.") from None
    mask = config.template_mask if flag == "template" else config.brain_mask
    if mask is not None:
        same_place(read_image(mask), read_image(path), mask)


def inputs_of(scan, config, source):
    """({scan, mask, initial}: digests of what a volume is made of, path of the start by hand or None)."""
    mask, start = None, start_of(config.initial, scan.name)
    if source is not None and source.way == "given":
        with contextlib.suppress(UserError):  # the worker says that there is none
            mask = file_digest(source.path_of(scan.name))
    digest = None if start is None else file_digest(start)
    return {"scan": scan.digest, "mask": mask, "initial": digest}, start


def tidy(config, scans, problems, source):
    """Bring the output folder in line with the scans that are there now.

    Args:
        config: PreprocessConfig.
        scans: List of Scan.
        problems: {name: why it cannot be used}.
        source: MaskSource, or None: no mask is read.

    Returns:
        ([(Scan, inputs, start by hand)] to do, {subject: row} of the others).
    """
    folder, known = config.folder, [*(scan.name for scan in scans), *problems]
    excluded = books.read_names(folder / "exclude.txt", known)
    earlier, to_do = books.read_status(folder), []
    rows = {name: books.row_of(name, "", "audit", reason) for name, reason in problems.items()}
    for name in {*books.without_scan(folder, [scan.name for scan in scans]), *excluded}:
        books.withdraw(folder, name)
    for scan in scans:
        if scan.name in excluded:
            rows[scan.name] = books.row_of(scan.name, scan.path, "excluded", "named in exclude.txt")
            continue
        inputs, start = inputs_of(scan, config, source)
        if books.is_whole(folder, scan.name, inputs) or (
            books.restore(folder, scan.name, inputs) and books.is_whole(folder, scan.name, inputs)
        ):
            kept = earlier.get(scan.name) or books.row_of(scan.name, scan.path, "done")
            rows[scan.name] = kept | {"step": "done", "reason": ""}
            continue
        books.make_room(folder, scan.name, inputs)
        to_do.append((scan, inputs, start))
    return to_do, rows


def make_template(config, scans, workers):
    """Path of the template built from the scans; one that an earlier call built is kept."""
    path = config.folder / "template" / "template.nii.gz"
    if not path.exists():
        settings = TemplateConfig(
            data=config.data,
            output=str(path.parent),
            masks=config.masks if config.perform_skull_stripping else None,
            brain_template=config.brain_template,
            brain_mask=config.brain_mask,
        )
        build_template(settings, scans, workers)
    return path


def preprocess(config):
    """Preprocess all scans of a folder, and go on where an earlier call stopped.

    Args:
        config: PreprocessConfig.

    Returns:
        Rows of status.csv, {subject: row}; `step` is done, flagged, excluded, withdrawn, or the step that
        failed for `reason`.

    Raises:
        UserError: The settings, the template or the folder cannot be used; no scan was worked on.
    """
    folder = config.folder
    for flag in ("template", "brain_template"):
        if getattr(config, flag) is not None:
            check_image(config, flag)
    stripped = is_stripped(config)
    source = needed_source(config, stripped)
    if config.template is not None and not (folder / "region.json").exists():
        choose_region(config, config.template)
    with locked(folder / ".lock", f"--output {folder}", "give another --output"):
        chosen = config.series, config.pattern, config.allow_synthetic
        named, problems = collect(config.data, config.output, *chosen)
        scans, wrong = audit(named)
        problems |= wrong
        check_starts(config.initial, [*(scan.name for scan in scans), *problems], warn)
        if config.template is None and config.cropping_bound_slices is not None and scans:
            grid = template_grid(choose_reference(scans))
            check_bounds(config.cropping_bound_slices, grid, "The template, built on the grid of a scan,")
        settings = config.settings(source)
        books.same_settings(folder, settings)
        for part in {path.parent for path in folder.rglob(".part-*")}:
            clear_parts(part)
        to_do, rows = tidy(config, scans, problems, source)
        print("\n".join(summary(scans)))
        books.write_status(rows, folder)
        if to_do:
            run(config, to_do, rows, source, stripped, settings)
        judge(config, rows)
        books.write_status(rows, folder)
        if config.bids_output:
            write_bids(folder, [name for name, row in rows.items() if row["step"] == "done"], versions())
        write_page(list(rows.values()), folder, settings | {"versions": versions()})
    return rows


def run(config, to_do, rows, source, stripped, settings):
    """Work on the scans that are to do; their rows are added as they come."""
    folder = config.folder
    largest = max(max(int(np.prod(scan.shape)) for scan, *_ in to_do), config.region_voxels)
    number = min(config.n_workers or default_workers(largest), len(to_do))
    with open_workers(config.scheduler, number) as workers:
        if source is not None and source.way in TOOLS:
            for address in workers.lacking(TOOLS[source.way][0]):
                raise UserError(
                    f"{TOOLS[source.way][0]} is not on PATH of worker {address}: install it there."
                )
        template = config.template or make_template(config, [scan for scan, *_ in to_do], workers)
        region, mirror = place_region(config, template)
        shared = {
            "config": replace(config, output=str(folder.resolve())),
            "source": source,
            "template": str(Path(template).resolve()),
            "stripped": stripped,
            "region": (region.shape, tuple(map(tuple, region.affine))),
            "mirror": tuple(map(tuple, mirror)),
            "settings": settings,
        }
        jobs = [
            Job(
                name=scan.name,
                path=str(Path(scan.path).resolve()),
                inputs=inputs,
                initial=start and str(start.resolve()),
                **shared,
            )
            for scan, inputs, start in to_do
        ]
        for job, row in run_all(workers, process, jobs, "Preprocessing"):
            killed = "its worker was killed twice, most likely for want of memory: fewer --n_workers"
            rows[job.name] = row or books.row_of(job.name, job.path, "killed", killed)
            books.write_status(rows, folder)


def warn(text):
    """Say what a person should look at."""
    print(f"Warning: {text}", file=sys.stderr)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def main(argv=None):
    """The command line; exits with 1 if any scan failed or is flagged."""
    config = parse_cli(PreprocessConfig, argv)
    with one_line_errors():
        for way in (TO_REGION, TO_NATIVE):
            if getattr(config, way.flag) is not None:
                print(carry(config, way))
                return
        if config.to_dicom is not None:
            print(f"Written: {to_dicom(config)}")
            return
        rows = preprocess(config)
    if books.report(rows, config.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""DICOM in and out: what belongs together, where it lies, what is refused; every file is accounted for."""

import csv
import gzip
import itertools
from pathlib import Path

from volumetric.cli import UserError
from volumetric.dicom_writing import KINDS, Origin, write_dicom
from volumetric.files import SYNTHETIC

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

import CoW_generator as cow
from preprocessing import preprocessing
from preprocessing.dicom import convert_dicom
from preprocessing.scans import collect
from tests.conftest import random_array, write_volume

SHAPE = (12, 16, 18)  # slices, rows, columns
PEAK = (7, 4, 11)
STEP = 0.8  # mm between slices
RAS = np.diag([-1, -1, 1])
TURNED = np.radians(20)


def stack(top=3000, shape=SHAPE):
    """Slices with a gradient and one brightest voxel, (Z, Y, X) uint16."""
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) % 997
    array[PEAK] = top
    return array


def places(number=SHAPE[0], step=(0, 0, STEP)):
    """ImagePositionPatient of the slices."""
    return [np.array([-10.0, -20.0, 30.0]) + k * np.array(step) for k in range(number)]


def header(**values):
    """Data set of one slice or file, without pixels."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = MRImageStorage, generate_uid(), "MR"
    data.ImageType, data.PatientID, data.PatientName = ["ORIGINAL", "PRIMARY", "M"], "p", "P"
    data.SeriesDescription, data.SeriesNumber, data.InstanceNumber = "TOF 3D multi-slab", 5, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    for name, value in values.items():
        setattr(data, name, value)
    return data


def save(data, path, syntax=ExplicitVRLittleEndian):
    """Write a data set as a file."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder, array=None, *, series="1.2.3.4", change=None, where=None, syntax=None, prefix="IM", **values
):
    """Write a classic series; `change(data, k)` may edit each slice, and returns False to leave it out."""
    array = stack() if array is None else array
    turn = values.pop("turn", (1, 0, 0, 0, 1, 0))
    paths = []
    for k, plane in enumerate(array):
        data = header(
            SeriesInstanceUID=series, FrameOfReferenceUID=f"{series}.9", InstanceNumber=k + 1, **values
        )
        data.ImagePositionPatient = [f"{v:.6f}" for v in (where or places(len(array)))[k]]
        data.ImageOrientationPatient, data.PixelSpacing = [f"{v:.9g}" for v in turn], [0.6, 0.5]
        data.Rows, data.Columns = plane.shape
        data.PixelRepresentation = int(plane.dtype.kind == "i")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data.PixelData = plane.astype(plane.dtype.newbyteorder(order)).tobytes()
        data["PixelData"].VR = "OW"
        if change is None or change(data, k) is not False:
            if syntax == RLELossless:
                data.file_meta = FileMetaDataset()
                data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                data.compress(RLELossless, generate_instance_uid=False)
            paths.append(save(data, folder / f"{prefix}{k + 1:04d}.dcm", syntax or ExplicitVRLittleEndian))
    return paths


def one(**values):
    """Sequence of one item."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


def write_enhanced(path, array, where, groups=None, **values):
    """Write an Enhanced MR file; `groups(k)` gives further functional groups of frame k."""
    data = header(SOPClassUID=EnhancedMRImageStorage, SeriesInstanceUID="1.2.3.5", **values)
    data.NumberOfFrames, data.Rows, data.Columns = array.shape
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = one(PixelSpacing=[0.6, 0.5], SliceThickness=STEP)
    shared.PlaneOrientationSequence = one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    for k, place in enumerate(where):
        frame = Dataset()
        frame.PlanePositionSequence = one(ImagePositionPatient=[round(float(v), 4) for v in place])
        for name, sequence in (groups(k) if groups else {}).items():
            setattr(frame, name, sequence)
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.PixelData = array.tobytes()
    return save(data, path)


def check_peak(path, top=3000, turn=(1, 0, 0, 0, 1, 0), where=None):
    """The brightest voxel has its value and lies where the headers say; returns the image."""
    image = nib.load(path)
    array = image.get_fdata()
    found = image.affine @ [*np.unravel_index(array.argmax(), array.shape), 1]
    z, y, x = PEAK
    lps = (where or places())[z] + 0.5 * x * np.array(turn[:3]) + 0.6 * y * np.array(turn[3:])
    assert array.max() == pytest.approx(top, rel=1e-6)
    np.testing.assert_allclose(found[:3], RAS @ lps, atol=1e-3)
    return image


def convert(folder, **settings):
    """(path of the one volume, its problems) of a folder's `raw`."""
    paths, problems = convert_dicom(folder / "raw", folder / "converted", **settings)
    assert len(paths) == 1, problems
    return paths[0]


def refused(folder):
    """The one reason for which nothing of a folder's `raw` was converted."""
    paths, problems = convert_dicom(folder / "raw", folder / "converted")
    assert not paths and not list((folder / "converted").glob("*.nii*")) and len(problems) == 1
    return next(iter(problems.values()))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ One series                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_a_series_keeps_place_values_and_name(tmp_path, capsys):
    write_series(tmp_path / "raw" / "sub-01")
    path = convert(tmp_path)
    assert path.name == "sub-01_TOF_3D_multi-slab_5-6694f8.nii.gz"
    image = check_peak(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), stack().transpose(2, 1, 0))
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), [0.5, 0.6, STEP], atol=1e-6)
    before = path.stat().st_mtime_ns, path.read_bytes()
    capsys.readouterr()
    assert convert_dicom(tmp_path / "raw", tmp_path / "converted", "tof") == ([path], {})
    assert "there already: sub-01_TOF" in capsys.readouterr().out and path.stat().st_mtime_ns == before[0]
    assert convert_dicom(tmp_path / "raw", tmp_path / "converted", "T2") == ([], {})
    assert "passed over: sub-01_TOF" in capsys.readouterr().out
    write_series(tmp_path / "raw" / "sub-01", stack(2000))  # another patient in the same place
    check_peak(convert(tmp_path), 2000)
    write_series(tmp_path / "raw" / "sub-01")
    assert convert(tmp_path).read_bytes() == before[1]


def test_oblique_slices_in_any_order_of_files(tmp_path):
    turn = (np.cos(TURNED), np.sin(TURNED), 0, 0, 0, -1)
    normal = np.cross(turn[:3], turn[3:])
    where = places(step=-STEP * normal)
    write_series(tmp_path / "raw", turn=turn, where=where)
    check_peak(convert(tmp_path), turn=turn, where=where)


def tilted(data, k):
    """A gantry tilted by 20 degrees: the table moves along the patient."""
    data.ImageOrientationPatient = [1, 0, 0, 0, f"{np.cos(TURNED):.9g}", f"{np.sin(TURNED):.9g}"]
    data.SOPClassUID = CTImageStorage


def at(first, **values):
    """Change of all slices from the first one on."""

    def change(data, k):
        for name, value in values.items() if k >= first else ():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)

    return change


def moved(k, by):
    """Change that moves one slice, mm."""

    def change(data, n):
        if n == k:
            data.ImagePositionPatient = [
                float(v) + b for v, b in zip(data.ImagePositionPatient, by, strict=True)
            ]

    return change


def larger(data, k):
    """The last slice has more rows."""
    if k == 11:
        data.Rows, data.PixelData = 20, bytes(20 * 18 * 2)


NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
REFUSED = {
    "tilted gantry": (
        tilted,
        "by 3 mm over the stack, as of a gantry tilted by 20",
    ),
    "sheared": (moved(11, (0.3, 0, 0)), "shifted against each other, by 0.3 mm"),
    "gap": (lambda data, k: k != 5, "has slices 0.8 to 1.6 mm apart, expected one distance"),
    "drift": (moved(11, (0, 0, 0.1)), "has slices 0.8 to 0.9 mm apart"),
    "one place twice": (moved(6, (0, 0, -STEP)), "has 1 of 12 slices where another one lies"),
    "spacing": (at(6, PixelSpacing=[1, 1]), "slices of two spacings, 0.5 x 0.6 and 1 x 1 mm (IM0007.dcm"),
    "no spacing": (at(0, PixelSpacing=None), "has no spacing of its voxels"),
    "size": (larger, "has slices of two sizes, 18 x 16 and 18 x 20 voxels (IM0012.dcm)"),
    "turned": (
        at(11, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        "1 of 12 slices turned otherwise",
    ),
    "no right angle": (
        at(0, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
        "two unit vectors at",
    ),
    "grey": (at(9, PhotometricInterpretation="MONOCHROME1"), "slices of two kinds of grey"),
    "inverted": (at(0, PhotometricInterpretation="MONOCHROME1"), "is stored inverted"),
    "units": (
        at(9, RescaleType="HU", RescaleSlope=1, RescaleIntercept=0),
        "two units, none and HU",
    ),
    "patients": (at(9, PatientID="q"), "has slices of 2 patients (IM0010.dcm, IM0011.dcm, IM0012.dcm)"),
    "space": (at(9, FrameOfReferenceUID="1.2"), "has slices of 2 frames of reference"),
    "echoes": (lambda d, k: setattr(d, "EchoTime", 3.4 if k < 9 else 7), "two echo times, 3.4 and 7.0 ms"),
    "no place": (
        at(0, **NOWHERE),
        "OrientationPatient): where it lies is unknown",
    ),
    "one without place": (at(11, **NOWHERE), "in 1 slices (IM0012.dcm): where it lies is unknown"),
    "no slope": (at(3, RescaleSlope=0, RescaleIntercept=1), "RescaleSlope) that is 0 or no number"),
    "bits": (at(0, BitsStored=10, HighBit=9), "to 3000, and states 10 bits, which hold 0 to 1023"),
    "table": (at(0, ModalityLUTSequence=one(LUTExplanation="x")), "by a table (Modality LUT)"),
    "mosaic": (at(0, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "has mosaics of slices (Siemens)"),
    "one slice": (lambda data, k: k == 0, "has one slice"),
    "synthetic": (at(4, SyntheticData="YES"), "no patient's scan: --allow_synthetic takes what is marked"),
    "nonsense": (at(11, PixelSpacing=None, Rows=None), "IM0012.dcm has no image where one is expected"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_with_a_series_is_said(tmp_path, kind):
    change, text = REFUSED[kind]
    write_series(tmp_path / "raw" / "sub-01", change=change)
    assert text in refused(tmp_path)


def test_times_and_weightings_are_no_scan_but_echoes_are_told_apart(tmp_path):
    twice = np.concatenate([stack(), stack(2000)])
    for name in ("TemporalPositionIdentifier", "DiffusionBValue", "EchoTime", "ImageType"):
        values = {"ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])}.get(name, (3, 7))

        def change(data, k, name=name, values=values):
            setattr(data, name, values[k // 12])

        write_series(tmp_path / name / "raw", twice, where=places() * 2, change=change)
    assert "holds 2 volumes, of 2 points of time" in refused(tmp_path / "TemporalPositionIdentifier")
    assert "holds 2 volumes, of 2 diffusion weightings" in refused(tmp_path / "DiffusionBValue")
    for name, parts in (("EchoTime", ("echo3.0", "echo7.0")), ("ImageType", ("M", "P"))):
        paths, problems = convert_dicom(tmp_path / name / "raw", tmp_path / name)
        assert not problems and [p.name.split("_5-")[0].split("_")[-1] for p in paths] == [*parts]
        check_peak(paths[0])
        check_peak(paths[1], 2000)


@pytest.mark.parametrize("slopes", [[1] + [2.5] * 11, [1 + 2 * k for k in range(12)], [0.5] * 12])
def test_every_slice_has_its_own_slope(tmp_path, slopes):
    array = (stack().astype(np.int64) * 20).clip(0, 60000).astype(np.uint16)

    def change(data, k):
        data.RescaleSlope, data.RescaleIntercept = slopes[k], -7

    write_series(tmp_path / "raw", array, change=change)
    image = nib.load(convert(tmp_path))
    right = array * np.array(slopes)[:, None, None] - 7
    np.testing.assert_allclose(image.get_fdata(), right.transpose(2, 1, 0), rtol=1e-6)
    assert image.get_data_dtype() == (np.float32 if len(set(slopes)) > 1 else np.uint16)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_ways_to_write_numbers(tmp_path, syntax):
    write_series(tmp_path / "raw", stack().astype(np.int16) - 500, syntax=syntax)
    check_peak(convert(tmp_path), 2500)


def test_numbers_compressed_as_jpeg_are_those_of_the_file(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    paths = write_series(tmp_path / "plain", change=at(0, RescaleSlope=3, RescaleIntercept=-1))
    for k, path in enumerate(paths):
        image = sitk.GetImageFromArray(stack()[k : k + 1])
        image.SetMetaData("0008|0060", "MR")
        sitk.WriteImage(image, str(tmp_path / "packed.dcm"), useCompression=True)  # JPEG 2000
        data, packed = dcmread(path), dcmread(tmp_path / "packed.dcm")
        data.PixelData = packed.PixelData
        data["PixelData"].is_undefined_length = True
        save(data, tmp_path / "raw" / path.name, packed.file_meta.TransferSyntaxUID)
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    check_peak(convert(tmp_path), 8999)


def test_twelve_bits_with_a_sign(tmp_path):
    array = stack().astype(np.int16) - 2000
    array[0, 0, 0] = -2000
    masked = (array & 0xFFF).astype(np.uint16)  # the sign is not carried upwards
    write_series(tmp_path / "raw", masked, change=at(0, BitsStored=12, HighBit=11, PixelRepresentation=1))
    np.testing.assert_array_equal(nib.load(convert(tmp_path)).get_fdata(), array.transpose(2, 1, 0))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Enhanced files                                                                                           ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

ORDER = np.random.default_rng(1).permutation(12)


def test_frames_are_read_one_by_one_and_sorted_by_place(tmp_path):
    def slopes(k):
        slope = 2.5 if ORDER[k] == PEAK[0] else 1
        return {"PixelValueTransformationSequence": one(RescaleSlope=slope, RescaleIntercept=0)}

    where = [places()[k] for k in ORDER]
    write_enhanced(tmp_path / "raw" / "x.dcm", stack()[ORDER], where)
    image = check_peak(convert(tmp_path))
    np.testing.assert_array_equal(image.get_fdata(), stack().transpose(2, 1, 0))
    write_enhanced(tmp_path / "raw" / "x.dcm", stack()[ORDER], where, slopes)
    check_peak(convert(tmp_path), 7500)
    unpacked = (tmp_path / "raw" / "x.dcm").read_bytes()
    (tmp_path / "raw" / "x.dcm").unlink()
    (tmp_path / "raw" / "x.dcm.gz").write_bytes(gzip.compress(unpacked))
    check_peak(convert(tmp_path), 7500)


def test_echoes_slabs_and_gaps_of_an_enhanced_file(tmp_path):
    def echoes(k):
        return {"MREchoSequence": one(EffectiveEchoTime=3.4 if k < 12 else 7.0)}

    def slabs(k):
        return {"FrameContentSequence": one(StackID=str(k // 6))}

    twice = np.concatenate([stack(), stack(2000)])
    write_enhanced(tmp_path / "a" / "x.dcm", twice, places() * 2, echoes)
    paths, problems = convert_dicom(tmp_path / "a", tmp_path / "a")
    assert not problems and ["echo3.4" in paths[0].name, "echo7.0" in paths[1].name] == [True, True]
    check_peak(paths[0])
    check_peak(paths[1], 2000)
    write_enhanced(tmp_path / "b" / "raw" / "x.dcm", stack(), places(), slabs)  # slabs of one volume are one
    check_peak(convert(tmp_path / "b"))
    apart = places()[:6] + [place + np.array([40, 0, 0]) for place in places()[6:]]
    write_enhanced(tmp_path / "c" / "raw" / "x.dcm", stack(), apart)
    assert "shifted against each other" in refused(tmp_path / "c")
    gap = [*places()[:6], *places(13)[7:]]
    write_enhanced(tmp_path / "d" / "raw" / "x.dcm", stack(), gap)
    assert "has slices 0.8 to 1.6 mm apart" in refused(tmp_path / "d")
    write_enhanced(tmp_path / "e" / "raw" / "x.dcm", twice, places() * 2)
    assert "has 12 of 24 slices where another one lies" in refused(tmp_path / "e")


def test_an_enhanced_file_of_a_scanner():
    path = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    if not path.exists():
        pytest.skip("nibabel is installed without its test data")
    from preprocessing.dicom_files import read_file
    from preprocessing.dicom_stacks import stacks_of

    file = read_file(path)
    (found,) = stacks_of(file.frames)
    assert not found.reason and len(found.frames) == 176 and file.shape == (176, 256, 256)
    np.testing.assert_allclose(nib.affines.voxel_sizes(found.affine), 1, atol=1e-4)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Many series                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_series_of_one_description_all_have_names_and_reasons(tmp_path):
    for k in range(3):
        write_series(tmp_path / "raw", stack(3000 + k), series=f"1.2.{k}.0.0.0", prefix=f"P{k}_")
    paths, problems = convert_dicom(tmp_path / "raw", tmp_path / "out")
    assert not problems and sorted(nib.load(p).get_fdata().max() for p in paths) == [3000, 3001, 3002]
    for k in (3, 4):
        write_series(tmp_path / "raw", series=f"1.2.{k}.0.0.0", prefix=f"P{k}_", change=REFUSED["gap"][0])
    again, problems = convert_dicom(tmp_path / "raw", tmp_path / "out")
    assert again == paths and len(problems) == 2
    with open(tmp_path / "out" / "series.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["verdict"] for row in rows) == ["refused"] * 2 + ["there already"] * 3


def test_a_series_may_be_spread_over_folders_or_be_copied(tmp_path):
    for path in write_series(tmp_path / "raw"):
        part = tmp_path / "raw" / "disc" / str(int(path.stem[2:]) % 2) / path.name
        part.parent.mkdir(parents=True, exist_ok=True)
        path.rename(part)
    path = convert(tmp_path)
    assert path.name.startswith("disc_TOF")
    check_peak(path)
    for folder, top in (("a", 3000), ("b", 2000)):  # one UID for two patients
        write_series(tmp_path / "two" / folder, stack(top))
    paths, problems = convert_dicom(tmp_path / "two", tmp_path / "two_out")
    assert not problems and [nib.load(p).get_fdata().max() for p in paths] == [3000, 2000]
    (tmp_path / "two" / "a" / "copy.dcm").write_bytes((tmp_path / "two" / "a" / "IM0003.dcm").read_bytes())
    assert len(convert_dicom(tmp_path / "two", tmp_path / "two_out")[0]) == 2


def cut(path, size):
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p: cut(p, -100), "its file IM0012.dcm is cut off: it has 476 of 576 bytes of its pixels"),
        (lambda p: cut(p, 700), "IM0012.dcm"),
        (lambda p: cut(p, 200), "IM0012.dcm"),
        (lambda p: cut(p, 0), "IM0012.dcm beside it is no DICOM file"),
        (
            lambda p: p.write_text("/annex/objects/x", encoding="utf-8"),
            "IM0012.dcm beside it is no DICOM file",
        ),
        (
            lambda p: (p.unlink(), p.symlink_to("nowhere")),
            "IM0012.dcm beside it is a link to a file that is not",
        ),
    ],
    ids=["pixels", "header", "early", "empty", "pointer", "link"],
)
def test_a_series_beside_a_damaged_file_is_refused(tmp_path, spoil, text):
    spoil(write_series(tmp_path / "raw" / "sub-01")[-1])
    paths, problems = convert_dicom(tmp_path / "raw", tmp_path / "out")
    assert not paths and any(name.startswith("sub-01_TOF") for name in problems)
    assert text in " ".join(problems.values()) and len(problems) < 3


def test_old_files_without_a_preamble_are_read(tmp_path):
    for path in write_series(tmp_path / "raw", syntax=ImplicitVRLittleEndian):
        data = dcmread(path)
        del data.file_meta
        data.save_as(path.with_suffix(""), enforce_file_format=False, implicit_vr=True, little_endian=True)
        path.unlink()
    check_peak(convert(tmp_path))


def colour(data, k):
    """Three numbers for each voxel."""
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = bytes(16 * 18 * 6)


def rotating(data, k):
    """Each slice turned otherwise."""
    angle = 0.2 * k
    data.ImageOrientationPatient = [f"{np.cos(angle):.6f}", f"{np.sin(angle):.6f}", 0, 0, 0, -1]


def three_planes(data, k):
    """Slices of all directions."""
    data.ImageOrientationPatient = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])[k % 3]


PASSED_OVER = {
    "localiser": (at(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localiser"),
    "three planes": (three_planes, "a localiser (slices in three planes)"),
    "rotating": (rotating, "projections, each turned otherwise"),
    "projections": (at(0, ImageType=["DERIVED", "SECONDARY", "MIP"]), "projections"),
    "screenshots": (at(0, SOPClassUID=SecondaryCaptureImageStorage, **NOWHERE), "no scan (Secondary Capture"),
    "colour": (colour, "in colour (RGB)"),
}


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_what_is_no_scan_is_passed_over_with_a_line(tmp_path, capsys, kind):
    change, text = PASSED_OVER[kind]
    write_series(tmp_path / "raw", change=change)
    save(header(SOPClassUID=ComprehensiveSRStorage, SeriesInstanceUID="1.7"), tmp_path / "raw" / "report")
    assert convert_dicom(tmp_path / "raw", tmp_path / "out") == ([], {})
    told = capsys.readouterr().out
    assert f": {text}" in told and "no image (Comprehensive SR Storage)" in told


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Out again                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def oblique(handed=1):
    """An affine with turned axes, mm."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, s], [0, -s, c]]
    affine[:3, :3] *= [handed * 0.5, 0.6, 0.8]
    affine[:3, 3] = 12.3, -40.1, 7.77
    return affine


def by_itk(path):
    """Image as SimpleITK reads a DICOM file or folder."""
    sitk = pytest.importorskip("SimpleITK")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    image = sitk.ReadImage(names)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(float)
    return nib.Nifti1Image(array, np.diag([-1, -1, 1, 1]) @ affine)


@pytest.mark.parametrize(("kind", "handed"), list(itertools.product(KINDS, (1, -1))))
def test_what_is_written_is_read_again(tmp_path, kind, handed):
    affine = oblique(handed)
    for name, array, off in (
        ("float", random_array(0, (16, 15, 12)), 0.51 / 65535),
        ("signed", np.random.default_rng(0).integers(-900, 900, (16, 15, 12)).astype(np.int32), 0),
    ):
        path = tmp_path / name / "raw" / "seed.dcm"
        write_dicom(array, affine, path, Origin("seed", "test", synthetic=True), kind)
        right = nib.as_closest_canonical(nib.Nifti1Image(array.astype(float), affine))
        for image in (nib.load(convert(tmp_path / name, allow_synthetic=True)), by_itk(path)):
            found = nib.as_closest_canonical(image)
            np.testing.assert_allclose(found.get_fdata(), right.get_fdata(), atol=off + 1e-7)
            np.testing.assert_allclose(found.affine, right.affine, atol=1e-4)


def test_a_synthetic_volume_says_that_it_is_nobody(tmp_path):
    array, patients = random_array(0, (16, 16, 12)), set()
    for kind in KINDS:
        path = write_dicom(array, np.eye(4), tmp_path / kind, Origin("seed", "CoW", synthetic=True), kind)
        data = dcmread(path if kind == "enhanced" else path / "0001.dcm")
        (equipment,) = data.ContributingEquipmentSequence
        (purpose,) = equipment.PurposeOfReferenceCodeSequence
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert purpose.CodeMeaning == "Synthesizing Equipment" and data.SyntheticData == "YES"
        assert data[0x0008, 0x001C].value == "YES" and data.ImageType[0] == "DERIVED"
        assert data.PatientName == "SYNTHETIC^NOBODY" and data.PatientBirthDate == data.PatientSex == ""
        patients.add(data.PatientID)
    other = write_dicom(1 - array, np.eye(4), tmp_path / "x", Origin("seed", "CoW", synthetic=True))
    assert len(patients) == 1 and dcmread(other).PatientID not in patients
    scan = dcmread(write_dicom(array, np.eye(4), tmp_path / "y", Origin("n", "pre", False, "sub-01")))
    assert "SyntheticData" not in scan and scan.PatientID == "sub-01"


def test_what_dicom_cannot_say_is_refused(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    origin = Origin("seed", "test", synthetic=True)
    with pytest.raises(UserError, match="sheared axes"):
        write_dicom(random_array(0), sheared, tmp_path / "x.dcm", origin)
    with pytest.raises(UserError, match="NaN"):
        write_dicom(np.full((8, 8, 4), np.nan), np.eye(4), tmp_path / "x.dcm", origin)
    write_dicom(random_array(0), np.eye(4), tmp_path / "x.dcm", origin)
    with pytest.raises(UserError, match="is there already"):
        write_dicom(random_array(0), np.eye(4), tmp_path / "x.dcm", origin)


def test_the_command_writes_volumes_and_no_label_maps(tmp_path):
    made = nib.Nifti1Image(random_array(0), np.eye(4))
    made.header["descrip"] = f"{SYNTHETIC} of a test".encode()
    nib.save(made, tmp_path / "made.nii.gz")
    flags = ["--output", tmp_path / "out", "--to_dicom"]
    preprocessing.main([*flags, tmp_path / "made.nii.gz"])
    preprocessing.main([*flags, tmp_path / "made.nii.gz", "--dicom_format", "classic"])
    assert dcmread(tmp_path / "out" / "dicom" / "made.dcm").SyntheticData == "YES"
    assert len(list((tmp_path / "out" / "dicom" / "made").iterdir())) == 4
    labels = write_volume(tmp_path / "labels.nii.gz", (random_array(0) > 0.5).astype(np.uint8))
    with pytest.raises(SystemExit, match=r"labels.nii.gz is a label map, which DICOM"):
        preprocessing.main([*flags, labels])
    write_volume(tmp_path / "raw" / "scan.nii.gz", random_array(1))
    nib.save(made, tmp_path / "raw" / "made.nii.gz")
    scans, problems = collect(tmp_path / "raw", tmp_path / "new")
    assert list(scans) == ["scan"] and "--allow_synthetic takes what is marked" in problems["made"]
    assert len(collect(tmp_path / "raw", tmp_path / "new", allow_synthetic=True)[0]) == 2


def test_the_generator_writes_what_it_makes(tmp_path):
    flags = ["--num_generate", 1, "--save_directory", tmp_path, "--device", "cpu", "--picture_format", "none"]
    for kind in KINDS:
        cow.main([*map(str, flags), "--dicom", kind])
    folder = tmp_path / "normal"
    right = nib.as_closest_canonical(nib.load(folder / "seed000000.nii.gz"))
    assert dcmread(folder / "dicom" / "seed000000.dcm").PatientName == "SYNTHETIC^NOBODY"
    paths, problems = convert_dicom(folder / "dicom", tmp_path / "read", allow_synthetic=True)
    assert len(paths) == 2 and not problems
    for path in paths:
        found = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_allclose(found.get_fdata(), right.get_fdata(), atol=0.51 / 65535)
        np.testing.assert_allclose(found.affine, right.affine, atol=1e-4)

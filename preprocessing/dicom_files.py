"""One DICOM file at a time: is it one, what does its header say of each frame, where are its pixels.

    file = read_file(path)          None if it is no DICOM file; what is wrong with it is in file.fault
    stored = stored_values(file)    (frames, rows, columns), the whole numbers in the file, without slopes

A file holds one frame (classic) or many (enhanced, PS3.3 C.7.6.16): then place, orientation, spacing and
slope of every frame are in its functional groups. Headers are read by pydicom, and so are pixels; those
compressed as JPEG, JPEG-LS and JPEG 2000 by SimpleITK, of a copy that has no slopes: GDCM applies the first
frame's to all, and cuts the result to a type that it chooses by them.
"""

import gzip
import io
import os
import struct
import tempfile
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import by, one_line

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    generate_uid,
)

NAMED_AS_DICOM = (".dcm", ".dicom", ".ima", ".dcm.gz")
MOST_UNPACKED = 2**32  # bytes of one packed file
COPY_AGAIN = "copy it again or remove it"
PIXELS = 0x7FE00010
NO_UID = UID("")
ITEM = 0xFFFEE000
# Elements that are read; the others are skipped, which halves the time.
ELEMENTS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("ProtocolName", "InstanceNumber", "ImageType", "Modality", "PatientID", "FrameOfReferenceUID"),
    *("SyntheticData", "Units", "RescaleType", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "ComplexImageComponent"),
    *("VolumeBasedCalculationTechnique", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Where the functional groups keep what a classic header has at its top.
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "VolumeBasedCalculationTechnique": "MRImageFrameTypeSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice: where it lies and how its numbers are meant.

    Args:
        file: DicomFile.
        index: Its number in the file.
        position: Of the middle of its first voxel, LPS mm; None if it is not stated.
        turn: Six cosines: along a row, then along a column; None if they are not stated.
        spacing: mm between rows, between columns; None if it is not stated.
        slope, intercept: value = slope * stored + intercept.
        units: Of the values, as far as stated.
        kind: Words of its image type and component.
        echo: Echo time in ms, else number of the echo.
        weighting: b-value.
        time: Number of the time point.
        stack: Name of its stack.
    """

    file: "DicomFile" = field(repr=False)
    index: int
    position: tuple | None
    turn: tuple | None
    spacing: tuple | None
    slope: float
    intercept: float
    units: str
    kind: tuple
    echo: float | None
    weighting: float | None
    time: int | None
    stack: str


@dataclass(slots=True)
class DicomFile:
    """A file that begins as DICOM, or is named as one.

    Args:
        path: Path.
        fault: What is wrong with it, or "".
        series: SeriesInstanceUID, or "" where the file does not get that far.
        uid: SOPInstanceUID.
        number: SeriesNumber, or None.
        instance: InstanceNumber, or None.
        description: Of the series.
        sort: UID of what it is (SOP class).
        modality: As MR.
        patient, space: PatientID and FrameOfReferenceUID.
        synthetic: It is marked as synthetic.
        syntax: Transfer syntax, a pydicom UID.
        shape: Frames, rows, columns; None: it holds no image.
        samples: Numbers per voxel.
        photometric: As MONOCHROME2.
        bits: Allocated, stored, and the highest of them.
        signed: Numbers may be negative.
        start: Byte where the pixels start.
        frames: Frame of each slice.
    """

    path: Path
    fault: str = ""
    series: str = ""
    uid: str = ""
    number: int | None = None
    instance: int | None = None
    description: str = ""
    sort: UID = NO_UID
    modality: str = ""
    patient: str = ""
    space: str = ""
    synthetic: bool = False
    syntax: UID = NO_UID
    shape: tuple | None = None
    samples: int = 1
    photometric: str = ""
    bits: tuple = (16, 16, 15)
    signed: bool = False
    start: int = 0
    frames: list = field(default_factory=list, repr=False)

    @property
    def name(self):
        """Of the file, as it can be printed."""
        return self.path.name.encode(errors="replace").decode()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Headers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def begins_as_dicom(head):
    """True for the mark behind the preamble, and for old files without one, which begin with group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    words = head[4:6].isalpha() and head[4:6].isupper()
    short = head[6:8] == b"\0\0" and head[4:6] != b"\0\0"
    little = head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0" and head[2:3] < b"\x20"
    big = head[:2] in (b"\0\x02", b"\0\x08") and head[2:3] == b"\0" and head[3:4] < b"\x20"
    return len(head) > 8 and ((little and (words or short)) or (big and words))


def opened(path):
    """Open file, unpacked if it is a .gz."""
    file = open(path, "rb")  # noqa: SIM115  the caller closes it
    if file.read(2) != b"\x1f\x8b":
        file.seek(0)
        return file
    file.close()
    with gzip.open(path) as packed:
        head = packed.read(132)
        content = head + packed.read(MOST_UNPACKED) if begins_as_dicom(head) else head
    return io.BytesIO(content)


def read_file(path):
    """DicomFile of a path, or None for another kind of file.

    One that is named as DICOM (NAMED_AS_DICOM) is never None: it has a fault if it is something else.
    """
    path = Path(path)
    file = DicomFile(path)
    named = path.name.lower().endswith(NAMED_AS_DICOM)
    if path.is_symlink() and not path.exists():
        file.fault = "is a link to a file that is not here: fetch it (datalad get)"
        return file if named else None
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with opened(path) as stream:
            if not begins_as_dicom(stream.read(132)):
                file.fault = f"is no DICOM file: {COPY_AGAIN}"
                return file if named else None
            stream.seek(0)
            read_header(file, stream)
    except UserError as error:
        file.fault = str(error)
    except Exception as error:  # damaged files break pydicom in more ways than it has errors for
        if path.suffix == ".gz" and not named:
            return None
        file.fault = f"cannot be read ({one_line(error)}): {COPY_AGAIN}"
    return file


def read_header(file, stream):
    """Fill a DicomFile from its open file; raises a UserError with what is wrong."""
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(ELEMENTS))
    header, meta = {element.keyword: element.value for element in dataset}, dataset.file_meta
    file.series, file.uid = text(header, "SeriesInstanceUID"), text(header, "SOPInstanceUID")
    file.sort = UID(text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"))
    file.number, file.instance = whole(header, "SeriesNumber"), whole(header, "InstanceNumber")
    file.description = text(header, "SeriesDescription") or text(header, "ProtocolName")
    file.modality, file.patient = text(header, "Modality"), text(header, "PatientID")
    file.space = text(header, "FrameOfReferenceUID")
    file.synthetic = text(header, "SyntheticData").upper() == "YES"
    file.syntax = UID(text(meta, "TransferSyntaxUID") or guessed_syntax(dataset))
    if whole(header, "Rows") is None:
        if may_hold_images(file):
            raise UserError(f"has no image where one is expected (cut off in its header?): {COPY_AGAIN}")
        return
    if "ModalityLUTSequence" in header:
        raise UserError("gives its values by a table (Modality LUT), which is not read: export it again")
    read_pixel_header(file, header)
    find_pixels(file, stream)
    file.frames = frames_of(file, header)


def guessed_syntax(dataset):
    """UID of the transfer syntax of a file that does not state it."""
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def may_hold_images(file):
    """True unless a file is of a class that has no pixels."""
    return not file.sort or "Image Storage" in file.sort.name


def read_pixel_header(file, header):
    """Size and kind of the pixels."""
    number = whole(header, "NumberOfFrames") or 1
    file.shape = number, whole(header, "Rows"), whole(header, "Columns") or 0
    file.samples = whole(header, "SamplesPerPixel") or 1
    file.photometric = text(header, "PhotometricInterpretation")
    allocated = whole(header, "BitsAllocated") or 16
    stored = whole(header, "BitsStored") or allocated
    high = whole(header, "HighBit")
    if high is None or not stored - 1 <= high < allocated:
        high = stored - 1
    file.bits, file.signed = (allocated, stored, high), whole(header, "PixelRepresentation") == 1
    if min(file.shape) < 1:
        raise UserError(f"states {by(file.shape)} frames, rows and columns: {COPY_AGAIN}")


def frames_of(file, header):
    """Frame of every slice in a file."""
    shared = first(header, "SharedFunctionalGroupsSequence")
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    number = file.shape[0]
    if groups and len(groups) != number:
        raise UserError(f"describes {len(groups)} frames and states {number}: export it again")
    classic = number == 1 and not groups and not shared
    own = [header] if classic else groups or [Dataset()] * number
    return [frame_of(file, i, Groups(header, shared, own[i], classic)) for i in range(number)]


@dataclass(frozen=True)
class Groups:
    """Looks an element of a frame up: in its own functional groups, then in the shared ones.

    Args:
        top: The header, {keyword: value}.
        shared: What all frames have, or an empty Dataset.
        own: What the frame has.
        classic: The header itself describes the one frame.
    """

    top: dict
    shared: Dataset
    own: Dataset
    classic: bool

    def get(self, name, fall_back=False):
        """Value of an element, or None; `fall_back`: that of the header counts for frames too."""
        for place in () if self.classic else (self.own, self.shared):
            value = first(place, GROUPS[name]).get(name)
            if value is not None:
                return value
        return self.top.get(name) if self.classic or fall_back else None

    def numbers(self, name, count):
        """Tuple of as many finite numbers, or None."""
        value = self.get(name)
        value = () if value is None else value if hasattr(value, "__len__") else (value,)
        if len(value) != count:
            return None
        value = tuple(map(float, value))
        return value if np.isfinite(value).all() else None


def frame_of(file, index, groups):
    """Frame of one slice."""
    header = groups.top

    def number(name, otherwise=None):
        value = groups.get(name, fall_back=True)
        return otherwise if value is None or value == "" else float(value)

    echo = number("EffectiveEchoTime") or real(header, "EchoTime") or real(header, "EchoNumbers")
    kind = groups.get("FrameType") or header.get("ImageType") or ()
    kind = (kind,) if isinstance(kind, str) else tuple(map(str, kind))
    made = (groups.get(name, True) for name in ("ComplexImageComponent", "VolumeBasedCalculationTechnique"))
    time = header.get("TemporalPositionIdentifier") if groups.classic else groups.get("TemporalPositionIndex")
    return Frame(
        file=file,
        index=index,
        position=groups.numbers("ImagePositionPatient", 3),
        turn=groups.numbers("ImageOrientationPatient", 6),
        spacing=groups.numbers("PixelSpacing", 2),
        slope=number("RescaleSlope", 1.0),
        intercept=number("RescaleIntercept", 0.0),
        units=str(header.get("Units") or groups.get("RescaleType", fall_back=True) or ""),
        kind=(*kind, *(str(word) for word in made if word and word != "NONE")),
        echo=echo,
        weighting=number("DiffusionBValue"),
        time=None if time is None or time == "" else int(time),
        stack=str(groups.get("StackID") or ""),
    )


def text(header, name):
    """Value of an element as text, "" if there is none."""
    value = header.get(name)
    return "" if value is None else str(value).strip("\0 ")


def real(header, name):
    """Number of an element, the first of several, or None."""
    value = header.get(name)
    value = value[0] if isinstance(value, MutableSequence) and value else value
    return None if value is None or value == "" or value == [] else float(value)


def whole(header, name):
    """Whole number of an element, or None."""
    value = real(header, name)
    return None if value is None else int(value)


def first(header, name):
    """First item of a sequence; an empty Dataset if there is none."""
    items = header.get(name)
    return items[0] if items else Dataset()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pixels                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def find_pixels(file, stream):
    """Note where the pixels of a file start; a UserError unless all of them are there."""
    if file.syntax == DeflatedExplicitVRLittleEndian:
        return  # nothing lies where it says before it is unpacked
    order = ">" if file.syntax == ExplicitVRBigEndian else "<"
    head = stream.read(12)
    if len(head) < 8 or tag_of(head, order) != PIXELS:
        found = f"ends before its pixels: {COPY_AGAIN}" if len(head) < 8 else "has no pixels that are read"
        raise UserError(found)
    if file.syntax.is_implicit_VR:
        stream.seek(-4 if len(head) == 12 else 0, os.SEEK_CUR)
    length = struct.unpack(f"{order}I", head[4:8] if file.syntax.is_implicit_VR else head[8:12])[0]
    file.start = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    if file.syntax.is_encapsulated:
        stream.seek(file.start)
        check_fragments(file, stream, size)
        return
    needed = -(-np.prod(file.shape, dtype=np.int64) * file.samples * file.bits[0] // 8)
    if file.photometric == "YBR_FULL_422":
        needed = needed * 2 // 3
    there = min(length, size - file.start)
    if there < needed:
        raise UserError(f"is cut off: it has {there} of {needed} bytes of its pixels: {COPY_AGAIN}")


def tag_of(head, order="<"):
    """Tag in the first four bytes of an element."""
    group, element = struct.unpack(f"{order}HH", head[:4])
    return group << 16 | element


def check_fragments(file, stream, size):
    """Raise a UserError unless all parts of compressed pixels are there, of which the first is a table."""
    fragments, length = -1, 0
    while len(head := stream.read(8)) == 8 and tag_of(head) == ITEM:
        length = struct.unpack("<I", head[4:])[0]
        if stream.tell() + length > size:
            raise UserError(f"is cut off in its pixels: {COPY_AGAIN}")
        stream.seek(length, os.SEEK_CUR)
        fragments += 1
    if fragments < file.shape[0] and not (fragments == 0 and length > 0):  # some leave the table out
        raise UserError(f"is cut off: it has {max(fragments, 0)} of {file.shape[0]} frames: {COPY_AGAIN}")


def stored_values(file, content=None):
    """The whole numbers of all frames, without slope and intercept.

    Args:
        file: DicomFile with one number per voxel.
        content: Bytes of the file, unpacked; None reads them.

    Returns:
        (frames, rows, columns), 8, 16 or 32 bits.

    Raises:
        UserError: They cannot be decoded, or are larger than the header states.
    """
    if content is None:
        with opened(file.path) as stream:
            content = stream.read()
    try:
        raw = decoded(file, content)
    except Exception:
        raise UserError(f"{file.name} cannot be decoded ({file.syntax.name}): {COPY_AGAIN}") from None
    return within_bits(file, raw)


def decoded(file, content):
    """Pixels as they are in the file, bits that are not of the number included."""
    if file.syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        kind = np.dtype(f"<{'i' if file.signed else 'u'}{file.bits[0] // 8}")
        return np.frombuffer(content, kind, int(np.prod(file.shape)), file.start).reshape(file.shape)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not file.syntax.is_encapsulated or file.syntax == RLELossless:
        return dataset.pixel_array.reshape(file.shape)
    return decompressed(dataset, file.shape)


def decompressed(dataset, shape):
    """Pixels of a JPEG, JPEG-LS or JPEG 2000 data set, by SimpleITK, of a copy with nothing else."""
    import SimpleITK as sitk

    bare = Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = (
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        generate_uid(),
    )
    bare.Rows, bare.Columns, bare.NumberOfFrames = dataset.Rows, dataset.Columns, shape[0]
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"  # GDCM inverts the other one
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(bare, name, dataset[name].value)
    bare.PixelData = dataset.PixelData
    bare["PixelData"].is_undefined_length = True
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.dcm"
        bare.save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        return sitk.GetArrayFromImage(reader.Execute()).reshape(shape)


def within_bits(file, raw):
    """Numbers of the stored bits alone (PS3.5 8.1.1); those above hold overlays, signs, or nothing.

    Raises:
        UserError: Numbers are larger than the stored bits, and the bits above are no sign.
    """
    allocated, stored, high = file.bits
    if stored == allocated:
        return raw
    shift = high + 1 - stored
    if shift:
        raise UserError(f"{file.name} stores its numbers in bits {shift} to {high}: export it again")
    low, top = (-(1 << high), (1 << high) - 1) if file.signed else (0, (1 << stored) - 1)
    if raw.min() >= low and raw.max() <= top:
        return raw
    if not file.signed or raw.max() > 2 * top + 1 or raw.min() < low:
        raise UserError(
            f"{file.name} has values from {raw.min()} to {raw.max()}, and states {stored} bits, which "
            f"hold {low} to {top}: export it again"
        )
    return np.where(raw > top, raw - raw.dtype.type(2 * top + 2), raw)  # the sign was not carried upwards

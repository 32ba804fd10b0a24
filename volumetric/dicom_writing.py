"""Volumes as DICOM: one Enhanced MR file, or a folder of classic MR slices, marked as what they are.

    origin = Origin("seed000042", program="CoW_generator", synthetic=True)
    write_dicom(array, affine, "seed000042.dcm", origin, "enhanced")

What a model made says so where programs look: Synthetic Data (0008,001C) is YES (PS3.3 C.12.1), Contributing
Equipment (0018,A001) has the purpose (109100, DCM, "Synthesizing Equipment") (PS3.16 CID 7005), the patient
is nobody, another nobody for every volume, so that archives do not take two for one person. All UIDs are
new, the image type is derived, and nothing is said of a scanner.

Grey values that are whole numbers of 16 bits stay as they are; others become 65536 levels between the least
and the greatest, with a rescale slope and intercept. A header has no room for sheared axes: they are refused.
"""

import copy
import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError
from volumetric.files import atomic_path, part_of, to_disk
from volumetric.geometry import OFF_MM

import numpy as np

KINDS = {"enhanced": "one Enhanced MR file a volume", "classic": "a folder of MR slices a volume"}
SYNTHESIZING = ("109100", "DCM", "Synthesizing Equipment")
PROCESSING = ("109102", "DCM", "Processing Equipment")
REGION, PART = ("69536005", "SCT", "Head"), "HEAD"  # Enhanced MR asks for the anatomy of its frames
ORDER = ("StackID", "InStackPositionNumber")
MAKER = "stylegan2-pytorch-3d"
LEVELS = 65535
LONGEST_TEXT = 64  # characters of a description (VR LO)


@dataclass(frozen=True)
class Origin:
    """What a volume is, and where it comes from.

    Args:
        name: For the description of the series.
        program: That wrote it.
        synthetic: A model made it; False: it is made of a patient's scan.
        patient: PatientID of what is made of a patient's scan.
    """

    name: str
    program: str
    synthetic: bool
    patient: str = ""


def write_dicom(array, affine, path, origin, kind="enhanced"):
    """Write a volume as DICOM, atomically.

    Args:
        array: (X, Y, Z), finite.
        affine: (4, 4), voxels to RAS mm, its axes at right angles.
        path: Of the file (enhanced) or the folder (classic); nothing may be there.
        origin: Origin.
        kind: One of KINDS.

    Returns:
        The path.

    Raises:
        UserError: Something is there, or the axes are sheared, or a value is not finite.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} is there already: move it away.")
    if not np.isfinite(array).all():
        raise UserError("has NaN or Inf, which DICOM has no numbers for: repair it")
    frames, place = Place.of(np.asarray(array), affine)
    grey = Grey.of(frames)
    common = header_of(origin, frames_digest(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "enhanced":
        with atomic_path(path) as part:
            enhanced(common, grey, place).save_as(part, enforce_file_format=True)
        return path
    part = part_of(path)
    part.mkdir()
    for k, slice_ in enumerate(classic(common, grey, place), start=1):
        slice_.save_as(part / f"{k:04d}.dcm", enforce_file_format=True)
        to_disk(part / f"{k:04d}.dcm")
    os.replace(part, path)
    return path


def frames_digest(frames):
    """First digits of the SHA-256 of the voxels, to tell one nobody from another."""
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()[:12]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Voxels                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Place:
    """Where the frames of a volume lie, LPS.

    Args:
        position: (3,) of the middle of the first voxel of the first frame, mm.
        axes: (3, 3), in rows: unit vectors along a row, along a column, from frame to frame.
        spacing: mm between columns, between rows, between frames.
    """

    position: np.ndarray
    axes: np.ndarray
    spacing: np.ndarray

    @classmethod
    def of(cls, array, affine):
        """(frames (Z, Y, X), Place) of an array (X, Y, Z) with an affine to RAS mm.

        Frames go along the normal of their rows and columns: readers take that for granted.
        """
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=float)
        if np.linalg.det(lps[:3, :3]) < 0:
            array = array[:, :, ::-1]
            lps[:3, 3] += lps[:3, 2] * (array.shape[2] - 1)
            lps[:3, 2] *= -1
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        u, _, v = np.linalg.svd(lps[:3, :3] / spacing)
        off = np.linalg.norm((lps[:3, :3] - u @ v * spacing) * np.array(array.shape), axis=0).sum()
        if not off < OFF_MM:
            raise UserError(
                f"has sheared axes, which DICOM cannot say ({off:.2g} mm at the far corner): resample it"
            )
        return array.transpose(2, 1, 0), cls(lps[:3, 3], (u @ v).T, spacing)

    def position_of(self, k):
        """ImagePositionPatient of frame k."""
        return numbers(self.position + k * self.spacing[2] * self.axes[2])

    @property
    def turn(self):
        """ImageOrientationPatient."""
        return numbers(self.axes[:2].ravel())


@dataclass(frozen=True)
class Grey:
    """Grey values as whole numbers of 16 bits.

    Args:
        stored: (Z, Y, X), uint16 or int16.
        slope, intercept: value = slope * stored + intercept, as the header's decimal text has them.
    """

    stored: np.ndarray
    slope: float
    intercept: float

    @classmethod
    def of(cls, frames):
        """Grey of frames (Z, Y, X)."""
        low, high = float(frames.min()), float(frames.max())
        if (frames == np.rint(frames)).all():
            for kind in (np.uint16, np.int16):
                if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                    return cls(frames.astype(kind), 1.0, 0.0)
        slope, intercept = map(float, numbers(((high - low) / LEVELS or 1.0, low)))
        stored = np.rint((frames.astype(np.float64) - intercept) / slope).clip(0, LEVELS)
        return cls(stored.astype(np.uint16), slope, intercept)


def numbers(values):
    """Decimal texts of at most 16 characters (VR DS)."""
    from pydicom.valuerep import DS

    return [DS(float(value), auto_format=True) for value in values]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Headers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def dataset(**values):
    """pydicom Dataset of keywords and values."""
    from pydicom.dataset import Dataset

    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def code(value, scheme, meaning):
    """Item of a code sequence."""
    return dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def header_of(origin, digest):
    """What all files of a volume have: patient, study, series, equipment (PS3.3 C.7.1 to C.7.5, C.12.1)."""
    from pydicom.uid import generate_uid

    now = datetime.datetime.now()
    what = "SYNTHETIC, made by a model, of no patient" if origin.synthetic else "made of a patient's scan"
    description = f"SYNTHETIC {origin.name}" if origin.synthetic else origin.name
    equipment = dataset(
        PurposeOfReferenceCodeSequence=[code(*(SYNTHESIZING if origin.synthetic else PROCESSING))],
        Manufacturer=MAKER,
        ManufacturerModelName=origin.program,
        SoftwareVersions=__version__,
        ContributionDateTime=now.strftime("%Y%m%d%H%M%S"),
        ContributionDescription=what,
    )
    header = dataset(
        SpecificCharacterSet="ISO_IR 192",
        Modality="MR",
        Manufacturer=MAKER,
        ManufacturerModelName=origin.program,
        DeviceSerialNumber="none",
        SoftwareVersions=__version__,
        ContributingEquipmentSequence=[equipment],
        PatientName="SYNTHETIC^NOBODY" if origin.synthetic else "ANONYMOUS",
        PatientID=f"SYNTHETIC-{digest}" if origin.synthetic else origin.patient[:LONGEST_TEXT],
        PatientBirthDate="",
        PatientSex="",
        PatientComments=what,
        StudyInstanceUID=generate_uid(),
        StudyDate="",
        StudyTime="",
        StudyID="",
        StudyDescription=what,
        AccessionNumber="",
        ReferringPhysicianName="",
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=1,
        SeriesDescription=description[:LONGEST_TEXT],
        PatientPosition="",
        FrameOfReferenceUID=generate_uid(),
        PositionReferenceIndicator="",
        ContentDate=now.strftime("%Y%m%d"),
        ContentTime=now.strftime("%H%M%S"),
        BodyPartExamined=PART,
        BurnedInAnnotation="NO",
        LossyImageCompression="00",
        PresentationLUTShape="IDENTITY",
    )
    if origin.synthetic:
        header.SyntheticData = "YES"
    return header


def with_pixels(header, stored, sop_class):
    """A copy of a header with identity, file header and pixels; `stored` is (Y, X) or (Z, Y, X)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    made = copy.deepcopy(header)
    made.SOPClassUID, made.SOPInstanceUID = sop_class, generate_uid()
    made.Rows, made.Columns = stored.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelRepresentation = int(stored.dtype == np.int16)
    made.PixelData = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("<")).tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def window(grey):
    """The window that shows all grey values; a width below 1 asks for LINEAR_EXACT (PS3.3 C.11.2.1.3)."""
    low = grey.slope * float(grey.stored.min()) + grey.intercept
    high = grey.slope * float(grey.stored.max()) + grey.intercept
    center, width = numbers(((low + high) / 2, max(high - low, 1e-6)))
    return {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"}


def classic(common, grey, place):
    """Yield the data sets of all slices: MR Image (PS3.3 A.4)."""
    from pydicom.uid import MRImageStorage

    for k, stored in enumerate(grey.stored):
        made = with_pixels(common, stored, MRImageStorage)
        values = dataset(
            ImageType=["DERIVED", "SECONDARY", "OTHER"],
            DerivationDescription=common.PatientComments,
            InstanceNumber=k + 1,
            AcquisitionNumber="",
            ImagePositionPatient=place.position_of(k),
            ImageOrientationPatient=place.turn,
            PixelSpacing=numbers(place.spacing[1::-1]),
            SliceThickness=numbers(place.spacing[2:])[0],
            SpacingBetweenSlices=numbers(place.spacing[2:])[0],
            ScanningSequence="RM",  # research mode: no sequence of a scanner
            SequenceVariant="NONE",
            ScanOptions="",
            MRAcquisitionType="3D",
            RepetitionTime="",
            EchoTime="",
            EchoTrainLength="",
            RescaleIntercept=numbers([grey.intercept])[0],
            RescaleSlope=numbers([grey.slope])[0],
            RescaleType="US",
            **window(grey),
        )
        made.update(values)
        yield made


def enhanced(common, grey, place):
    """Data set of all slices: Enhanced MR Image (PS3.3 A.36.2), functional groups of C.7.6.16."""
    from pydicom.uid import EnhancedMRImageStorage, generate_uid

    made = with_pixels(common, grey.stored, EnhancedMRImageStorage)
    kind = {
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
        "ComplexImageComponent": "MAGNITUDE",
        "AcquisitionContrast": "UNKNOWN",
    }
    words = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    organisation = generate_uid()
    made.update(
        dataset(
            ImageType=words,
            InstanceNumber=1,
            NumberOfFrames=len(grey.stored),
            ContentQualification="RESEARCH",
            AcquisitionContextSequence=[],
            DimensionOrganizationType="3D",
            DimensionOrganizationSequence=[dataset(DimensionOrganizationUID=organisation)],
            DimensionIndexSequence=[dimension(name, organisation) for name in ORDER],
            SharedFunctionalGroupsSequence=[shared_groups(grey, place, dataset(FrameType=words, **kind))],
            PerFrameFunctionalGroupsSequence=[frame_groups(k, place) for k in range(len(grey.stored))],
            **kind,
        )
    )
    return made


def dimension(name, organisation):
    """Item that says by which element of their content frames are ordered."""
    from pydicom.datadict import tag_for_keyword

    return dataset(
        DimensionIndexPointer=tag_for_keyword(name),
        FunctionalGroupPointer=tag_for_keyword("FrameContentSequence"),
        DimensionOrganizationUID=organisation,
        DimensionDescriptionLabel=name,
    )


def shared_groups(grey, place, frame_type):
    """Functional groups that all frames have."""
    columns, rows, between = numbers(place.spacing)
    measures = dataset(PixelSpacing=[rows, columns], SliceThickness=between, SpacingBetweenSlices=between)
    slope, intercept = numbers((grey.slope, grey.intercept))
    values = dataset(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType="US")
    anatomy = dataset(FrameLaterality="U", AnatomicRegionSequence=[code(*REGION)])
    return dataset(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[dataset(ImageOrientationPatient=place.turn)],
        PixelValueTransformationSequence=[values],
        FrameVOILUTSequence=[dataset(**window(grey))],
        FrameAnatomySequence=[anatomy],
        MRImageFrameTypeSequence=[frame_type],
    )


def frame_groups(k, place):
    """Functional groups of frame k."""
    content = dataset(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1])
    return dataset(
        FrameContentSequence=[content],
        PlanePositionSequence=[dataset(ImagePositionPatient=place.position_of(k))],
    )

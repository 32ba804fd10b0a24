"""Fréchet radiomics distance: sets of volumes compared by brightness and texture, without a network.

Konz, Osuala et al. 2026 (Medical Image Analysis 110, 103943; arXiv:2412.01496) compare sets of images by the
features that radiologists' software computes, of PyRadiomics (van Griethuysen et al. 2017,
doi:10.1158/0008-5472.CAN-17-0339). PyRadiomics is an extra: `pip install "stylegan2-pytorch-3d[radiomics]"`.
"""

import logging
from importlib.metadata import version
from numbers import Number

from volumetric.cli import UserError

import numpy as np
from nibabel.affines import voxel_sizes

from MedicalNet.distances import Frechet

FEATURES = 1014  # 77 of each of 13 images, and 13 of how the volume was prepared
CLASSES = dict.fromkeys(("firstorder", "glrlm", "glszm", "ngtdm"))  # all of their features
CLASSES["glcm"] = ["Autocorrelation", "JointAverage", "ClusterProminence", "ClusterShade", "ClusterTendency"]
CLASSES["glcm"] += ["Contrast", "Correlation", "DifferenceAverage", "DifferenceEntropy", "DifferenceVariance"]
CLASSES["glcm"] += ["JointEnergy", "JointEntropy", "Imc1", "Imc2", "Idm", "Idmn", "Id", "Idn"]
CLASSES["glcm"] += ["InverseVariance", "MaximumProbability", "SumEntropy", "SumSquares"]
IMAGES = {"Original": {}, "LoG": {"sigma": [2.0, 3.0, 4.0, 5.0]}, "Wavelet": {}}  # sigma in mm
# As extraction_3d.yaml of frd-score 1.0.1, the authors' program.
SETTINGS = {
    "normalize": True,
    "normalizeScale": 100,
    "interpolator": "sitkBSpline",
    "resampledPixelSpacing": [2, 2, 2],  # mm
    "padDistance": 10,
    "preCrop": True,
    "binWidth": 5,
    "voxelArrayShift": 300,
    "correctMask": True,
    "minimumROIDimensions": 1,
    "label": 1,
}


class Radiomics:
    """Radiomic features of a whole volume, as the authors' program takes them of volumes without a mask.

    First-order, co-occurrence, run-length, size-zone and grey-tone-difference features, in 3D, of the volume,
    of four Laplacians of Gaussians and of eight wavelet bands; and, as in the published numbers, the means,
    extremes and counts that PyRadiomics reports of its own preparation.

    Raises:
        UserError: PyRadiomics is not installed.
    """

    name = "radiomics"
    version = 1  # of the code behind the protocol: raise it when the features change
    dimension = FEATURES
    on_host = True

    def __init__(self):
        try:
            import radiomics
            from radiomics.featureextractor import RadiomicsFeatureExtractor
        except ImportError as error:
            raise UserError(
                f"radiomics among --metrics needs PyRadiomics ({error}): pip install "
                f'"stylegan2-pytorch-3d[radiomics]", with a C compiler, or leave radiomics out.'
            ) from None
        radiomics.setVerbosity(logging.ERROR)
        asked = {"imageType": IMAGES, "featureClass": CLASSES, "setting": SETTINGS}
        self.extractor = RadiomicsFeatureExtractor(asked)
        self.digest = f"PyRadiomics {radiomics.__version__}, " + ", ".join(
            f"{name} {version(name)}" for name in ("SimpleITK", "PyWavelets")
        )
        self.protocol = (
            "whole volume; minus its mean, over its standard deviation, times 100; resampled to 2 mm, "
            "B-spline; bins of 5; PyRadiomics first-order, GLCM, GLRLM, GLSZM and NGTDM features of the "
            "volume, LoG of 2 to 5 mm and wavelets, in 3D; standardised by the real volumes; "
            f"{self.digest}"
        )

    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"features": (1, FEATURES) float32}"""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32))
        image.SetSpacing([float(mm) for mm in voxel_sizes(affine)])
        inside = np.ones(array.shape[::-1], np.uint8)
        inside[0, 0, 0] = 0  # a mask without an outside is refused
        mask = sitk.GetImageFromArray(inside)
        mask.CopyInformation(image)
        try:
            found = self.extractor.execute(image, mask)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"has no radiomic features ({' '.join(str(error).split())})") from None
        numbers = [float(v) for name, v in found.items() if is_feature(name, v)]
        if len(numbers) != FEATURES:
            raise UserError(
                f"has {len(numbers)} radiomic features, expected {FEATURES}: it is too small for filters of "
                f"2 to 5 mm; leave radiomics out of --metrics"
            )
        return {"features": np.array(numbers, np.float32)[None]}


def is_feature(name, value):
    """True for features, and for numbers among what PyRadiomics reports of its own work."""
    return not name.startswith("diagnostics") or isinstance(value, Number)


def standardized_by_real(real, generated):
    """Both sets minus the mean, over the standard deviation of the real one, in float64.

    Features that are constant among the real, or not finite in some volume, are left out. Differs from the
    authors' program: there, a volume with a feature that is no number is left out instead.

    Shapes: (n, 1, d), (m, 1, d) -> (n, 1, k), (m, 1, k)

    Raises:
        UserError: No feature is left.
    """
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean, deviation = real.mean(axis=(0, 1)), real.std(axis=(0, 1))
    kept = np.isfinite(real).all(axis=(0, 1)) & np.isfinite(generated).all(axis=(0, 1))
    kept &= deviation > np.finfo(np.float32).eps * np.abs(mean)
    if not kept.any():
        raise UserError(
            "No radiomic feature differs between the real volumes: leave radiomics out of --metrics."
        )
    return tuple((f[..., kept] - mean[kept]) / deviation[kept] for f in (real, generated))


class FrechetRadiomics(Frechet):
    """Fréchet radiomics distance (arXiv:2412.01496, Eq. 3): log d, with d^2 as of Frechet.

    The authors' program, frd-score, prints log d^2 by default, twice this value; its --use_paper_log is this.

    Shapes: real (n, 1, d), generated (m, 1, d), of `standardized_by_real`
    """

    bounds = (-np.inf, np.inf)

    def exact(self):
        """The distance in all dimensions."""
        return half_log(super().exact())

    def __call__(self, real_counts, generated_counts):
        return half_log(super().__call__(real_counts, generated_counts))


def half_log(squared):
    """log d of d^2; minus infinity for equal sets."""
    return float(np.log(squared) / 2) if squared > 0 else -np.inf

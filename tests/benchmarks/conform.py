"""How conform.py resamples, and what a training on its volumes takes: thin vessels, and memory.

    python tests/benchmarks/conform.py resampling
    python tests/benchmarks/conform.py memory

The first draws curved vessels with radii of 0.3 to 1 mm on voxels of 0.1 mm, scans them with voxels of one
size (a Gaussian as wide as the voxel, noise of 3 % of the largest value), brings the scan to another size in
several ways and compares it with a scan of that size without noise. The second runs the trainer's --dry_run.
Both print Markdown or Python to copy.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
from preprocessing.images import Grid  # noqa: E402
from preprocessing.resampling import FWHM, resampled, sampled  # noqa: E402

FINE, EDGE_MM = 0.1, 26.0  # mm
NOISE = 0.03  # of the largest value
SIZES = [((0.5, 0.5, 0.8), 0.6), ((0.5, 0.5, 0.8), 0.8), ((0.5, 0.5, 0.8), 1.2), ((0.3, 0.3, 0.6), 0.62)]
SHAPES = [(32, 32), (64, 16), (64, 32), (64, 64), (128, 16), (128, 32), (128, 64), (128, 128)]
SHAPES += [(256, 32), (256, 64), (256, 128)]


def vessels(rng, number=12):
    """Curved tubes of brightness 1 in tissue of 0.3, and the depth below their walls, mm. -> 2 x (X, Y, Z)"""
    n = round(EDGE_MM / FINE)
    depth, line = np.full((n, n, n), 9.0, np.float32), np.linspace(0, 1, 1500)
    for _ in range(number):
        middle, wide = rng.uniform(5, EDGE_MM - 5, (3, 1)), rng.uniform(3, 9, (3, 1))
        points = (middle + wide * np.sin(rng.uniform(1, 5, (3, 1)) * line + rng.uniform(0, 6, (3, 1)))).T
        low = np.clip((points.min(0) - 1.5) / FINE, 0, n).astype(int)
        high = np.clip((points.max(0) + 1.5) / FINE, 0, n).astype(int)
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        places = np.stack(np.mgrid[part], -1) * FINE
        distance, _ = cKDTree(points).query(places, distance_upper_bound=1.5)
        wall = distance - rng.uniform(0.3, 1.0)
        depth[part] = np.minimum(depth[part], np.where(np.isfinite(wall), wall, 9))
    return (0.3 + 0.7 * np.clip(0.5 - depth / FINE, 0, 1)).astype(np.float32), depth


def grid_about(spacing, margin):
    """Grid of voxels of a size in the middle of the phantom."""
    spacing = np.broadcast_to(spacing, 3)
    shape = np.floor((EDGE_MM - 2 * margin) / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = margin + 0.37 * spacing
    return Grid(tuple(shape), affine)


def scanned(fine, grid):
    """What a scanner with the voxels of a Grid would see."""
    wide = ndimage.gaussian_filter(fine, np.diag(grid.affine)[:3] / FWHM / FINE, mode="nearest", truncate=3)
    return sampled(wide, np.diag([FINE, FINE, FINE, 1]), grid, 1, 0)


def resampling(seed=0):
    """Print the table of ways to resample."""
    rng = np.random.default_rng(seed)
    fine, depth = vessels(rng)
    print("| voxels, mm | way | error near vessels, % | brightness kept |\n|---|---|---|---|")
    for size, wanted in SIZES:
        own, grid = grid_about(size, 0.2), grid_about(wanted, 1.5)
        scan, truth = scanned(fine, own), scanned(fine, grid)
        scan += rng.normal(0, NOISE, scan.shape).astype(np.float32)
        below = sampled(depth, np.diag([FINE, FINE, FINE, 1]), grid, 1, 9)
        near, core = below < wanted, below < 0
        ratio = np.maximum(wanted / np.array(size), 1)
        smooth = ndimage.gaussian_filter(scan, np.sqrt(ratio**2 - 1) / FWHM, mode="reflect")
        ways = {
            "linear": sampled(scan, own.affine, grid, 1, 0),
            "cubic": sampled(scan, own.affine, grid, 3, 0),
            "smoothed, linear": sampled(smooth, own.affine, grid, 1, 0),
            "smoothed, cubic (conform.py)": resampled(scan, own.affine, grid),
        }
        for way, made in ways.items():
            error = 100 * np.sqrt(np.square(made - truth)[near].mean())
            kept = (made[core].mean() - 0.3) / (truth[core].mean() - 0.3)
            print(f"| {' x '.join(map(str, size))} to {wanted} | {way} | {error:.1f} | {kept:.2f} |")


def memory():
    """Print the table of the trainer's memory, GiB."""
    found = {}
    for size, depth in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            for n in range(8):
                array = np.zeros((size, size, depth), np.float32)
                array[0, 0, :4] = np.random.default_rng(n).random(4)
                nib.save(nib.Nifti1Image(array, np.eye(4)), f"{folder}/{n}.nii")
            command = [sys.executable, str(ROOT / "stylegan2_pytorch.py"), "--data", folder, "--dry_run"]
            command += ["--device", "cpu", "--recipe", "robust", "--results_dir", f"{folder}/r"]
            command += ["--models_dir", f"{folder}/m", "--image_size", str(size), "--image_depth", str(depth)]
            said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=ROOT).stdout
        peaks = re.findall(r"peak memory, .*: (.*) GiB", said)
        found[size, depth] = round(max(map(float, peaks)), 1)
        print(found, flush=True)


if __name__ == "__main__":
    fire.Fire({"resampling": resampling, "memory": memory})

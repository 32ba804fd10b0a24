"""What a person looks at: one picture per scan, and a page of all, the least alike first."""

import html
import string

import nibabel as nib
import numpy as np
from PIL import Image
from scipy import ndimage

from preprocessing.images import grid_of, within
from preprocessing.registration import at_spacing, resample
from volumetric.files import atomic_path

VIEW_MM = 1.0  # pixels of the planes
EDGE_SIGMA = 1.5  # pixels
EDGE_COLOUR = (255, 140, 40)
BOX_COLOUR = (70, 190, 230)
GAP = 6  # pixels between panels
BACKGROUND = 24

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Preprocessing</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; }
figure { margin: 0 0 1.2rem; padding: .6rem; border: 1px solid #ddd; border-radius: 4px; }
figure.failed { border-color: #e0a020; background: #fff8e6; }
img { max-width: 100%; display: block; background: #181818; }
figcaption { margin-top: .4rem; overflow-wrap: anywhere; }
.reason { color: #8a4b00; }
.number { font-variant-numeric: tabular-nums; }
</style></head><body>
<h1>Preprocessing: $done of $total scans done, $failed not</h1>
<p>Edges of the template (orange) over each scan in the template's space: axial, coronal and sagittal plane
through the middle of the region (blue frame), the patient's right and front on the left; then the region's
axial maximum-intensity projection. Edges must follow the scan. Failed ones first, then by normalised mutual
information, the least alike first.</p>
$figures
</body></html>
""")


def planes_of(array, affine, center):
    """Axial, coronal and sagittal plane through a point in radiological view: right and front are left.

    Shapes: array (X, Y, Z), affine (4, 4) RAS, center (3,) mm -> three arrays (rows, columns)
    """
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    voxel = np.rint(np.linalg.inv(image.affine) @ np.append(center, 1))[:3].astype(int)
    voxel = np.clip(voxel, 0, np.array(image.shape) - 1)
    array = np.asarray(image.dataobj)
    return [np.take(array, voxel[axis], axis)[::-1, ::-1].T for axis in (2, 1, 0)]


def to_grey(plane, low, high):
    """A plane as RGB between two grey values. Shapes: (rows, columns) -> (rows, columns, 3) uint8"""
    scaled = np.clip((plane - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.rint(255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def draw_match(template, scan, matrix, region, volume, path):
    """Write the picture of one registration as PNG.

    Args:
        template, scan: ANTs images.
        matrix: (4, 4), points of the template to points of the scan, RAS mm.
        region: Grid of the region.
        volume: (X, Y, Z), what was cropped, on that grid, or None.
        path: PNG file.
    """
    from skimage.feature import canny

    fixed = at_spacing(template, VIEW_MM)
    moved = resample(scan, fixed, matrix).numpy()
    grid = grid_of(fixed)
    center = (region.affine @ [*(np.array(region.shape) / 2), 1])[:3]
    to_view = np.linalg.inv(grid.affine) @ region.affine
    corners = np.array([(to_view @ [*c, 1])[:3] for c in ((0, 0, 0), region.shape)])
    box = np.zeros(fixed.shape, np.uint8)
    bounds = [(round(a), round(b)) for a, b in zip(corners.min(0), corners.max(0), strict=True)]
    box[within(bounds, box.shape)] = 1
    panels = []
    low, high = np.percentile(moved, (1, 99.5))
    layers = [planes_of(array, grid.affine, center) for array in (moved, fixed.numpy(), box)]
    for plane, of_template, frame in zip(*layers, strict=True):
        panel = to_grey(plane, low, high)
        panel[canny(of_template / max(np.ptp(of_template), 1e-12), EDGE_SIGMA)] = EDGE_COLOUR
        panel[frame.astype(bool) & ~ndimage.binary_erosion(frame, border_value=0)] = BOX_COLOUR
        panels.append(panel)
    if volume is not None:
        flat = nib.as_closest_canonical(nib.Nifti1Image(volume, region.affine))
        projection = np.asarray(flat.dataobj).max(axis=2)[::-1, ::-1].T
        panel = Image.fromarray(to_grey(projection, *np.percentile(volume, (1, 99.9))))
        rows = max(p.shape[0] for p in panels)
        panels.append(np.asarray(panel.resize((round(rows * panel.width / panel.height), rows))))
    with atomic_path(path) as part:
        Image.fromarray(side_by_side(panels)).save(part)


def draw_template(arrays, affine, path):
    """Write the averages of all iterations as PNG, one row each: three planes through the middle, projection.

    Shapes: list of (X, Y, Z), affine (4, 4) RAS
    """
    center = affine @ [*(np.array(arrays[0].shape) / 2), 1]
    rows = []
    for array in arrays:
        planes = [*planes_of(array, affine, center[:3]), array.max(axis=2)[::-1, ::-1].T]
        rows.append(side_by_side([to_grey(p, 0, np.percentile(p, 99.8)) for p in planes]))
    with atomic_path(path) as part:
        Image.fromarray(np.concatenate(rows)).save(part)


def side_by_side(panels):
    """Panels (rows, columns, 3) in one row, on a dark ground."""
    rows = max(p.shape[0] for p in panels)
    placed = []
    for panel in panels:
        space = rows - panel.shape[0]
        margins = ((GAP + space // 2, GAP + space - space // 2), (GAP, GAP), (0, 0))
        placed.append(np.pad(panel, margins, constant_values=BACKGROUND))
    return np.concatenate(placed, axis=1)


def write_page(rows, folder):
    """Write qc.html from the rows of status.csv, failed scans and low mutual information first."""

    def order(row):
        return (row["step"] == "done", float(row["nmi"] or 0), row["subject"])

    figures = []
    for row in sorted(rows, key=order):
        name, failed = html.escape(row["subject"]), row["step"] != "done"
        picture = f'<img loading="lazy" src="qc/{name}.png" alt="{name}">'
        shown = picture if (folder / "qc" / f"{row['subject']}.png").exists() else ""
        caption = f"<b>{name}</b> "
        if row["nmi"]:
            caption += (
                f'<span class="number">mutual information {row["nmi"]}, covered {row["coverage"]}</span>'
            )
        if row["reason"]:
            caption += (
                f' <span class="reason">{html.escape(row["step"])}: {html.escape(row["reason"])}</span>'
            )
        kind = ' class="failed"' if failed else ""
        figures.append(f"<figure{kind}>{shown}<figcaption>{caption}</figcaption></figure>")
    done = sum(row["step"] == "done" for row in rows)
    page = PAGE.substitute(done=done, total=len(rows), failed=len(rows) - done, figures="\n".join(figures))
    with atomic_path(folder / "qc.html") as part:
        part.write_text(page, encoding="utf-8")

"""What a person looks at: pictures of every scan beside the template, and a page of all, the worst first."""

import html
import json
import string

from volumetric.files import atomic_path
from volumetric.geometry import turn

import numpy as np
from PIL import Image
from scipy import ndimage

from preprocessing.images import corners_of, grid_of, within
from preprocessing.registration import at_spacing, resample

VIEW_MM = 1.0  # of a picture's pixel, before it is enlarged
PANEL = 360  # least width of a panel, pixels
AROUND_MM = 20.0  # of the region, in pictures without a face
BOX_COLOUR = (70, 190, 230)
GAP = 6  # pixels between panels
BACKGROUND = 24
# Order of the page: what needs a person first.
LATE = {"done": 1, "excluded": 2, "withdrawn": 2}

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Preprocessing</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; }
.controls { position: sticky; top: 0; z-index: 2; padding: .5rem 0; background: #fff;
  border-bottom: 1px solid #ddd; }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .4rem;
  margin: 1rem 0; }
.all a { font-size: 11px; color: inherit; text-decoration: none; overflow: hidden; text-overflow: ellipsis; }
.all img { width: 100%; display: block; border: 3px solid transparent; box-sizing: border-box; }
.all .look img { border-color: #e07000; }
figure { margin: 0 0 1.4rem; padding: .6rem; border: 1px solid #ddd; border-radius: 4px;
  scroll-margin-top: 4rem; }
figure.look { border-color: #e07000; background: #fff6ea; }
figcaption { margin-bottom: .4rem; overflow-wrap: anywhere; }
.pair { position: relative; background: #181818; cursor: zoom-in; }
.pair img { width: 100%; display: block; }
.pair .over { position: absolute; inset: 0; opacity: 0; }
dialog { width: 96vw; max-width: none; padding: 0; border: 0; background: #181818; }
dialog .pair { cursor: zoom-out; }
.reason { color: #8a3d00; }
.number { font-variant-numeric: tabular-nums; color: #555; }
td { padding-right: 1rem; vertical-align: top; }
</style></head><body>
<h1>Preprocessing: $done in volumes/, $flagged flagged, $others others</h1>
<p>Each scan in the template's space: axial plane and projection of the region above, coronal and sagittal
plane below, all through the middle of the region (blue frame); the patient's right and front are on the left.
<b>Slide, or blink, between scan and template: what is right does not move.</b> A click enlarges. Flagged
scans first, then the others, those that stand out least first. Right ones that are flagged go into
accept.txt, wrong ones that are not into exclude.txt, one name a line; then give the same command again.</p>
<div class="controls"><label>scan <input id="mix" type="range" min="0" max="100" value="0"> template</label>
<label><input id="blink" type="checkbox"> blink</label></div>
<div class="all">$thumbs</div>
$figures
<details><summary>$unseen without a picture</summary><table>$rest</table></details>
<details><summary>Settings and versions</summary><pre>$settings</pre></details>
<dialog></dialog>
<script>
const mix = document.getElementById("mix"), blink = document.getElementById("blink");
const dialog = document.querySelector("dialog");
function show(share) { document.querySelectorAll(".over").forEach(one => { one.style.opacity = share; }); }
mix.oninput = () => show(mix.value / 100);
let timer = null, on = false;
blink.onchange = () => {
  clearInterval(timer);
  show(mix.value / 100);
  if (blink.checked) timer = setInterval(() => { on = !on; show(on ? 1 : 0); }, 600);
};
document.querySelectorAll("figure .pair").forEach(pair => {
  pair.onclick = () => { dialog.replaceChildren(pair.cloneNode(true)); dialog.showModal(); };
});
dialog.onclick = () => dialog.close();
</script></body></html>
""")


def planes_of(array, affine, center):
    """Axial, coronal and sagittal plane through a point in radiological view: right and front are left.

    Shapes: array (X, Y, Z), affine (4, 4) RAS, center (3,) mm -> three arrays (rows, columns)
    """
    array, affine = turn(array, affine)
    voxel = np.rint(np.linalg.inv(affine) @ np.append(center, 1))[:3].astype(int)
    voxel = np.clip(voxel, 0, np.array(array.shape) - 1)
    return [np.take(array, voxel[axis], axis)[::-1, ::-1].T for axis in (2, 1, 0)]


def to_grey(plane, low, high):
    """A plane as RGB between two grey values. Shapes: (rows, columns) -> (rows, columns, 3) uint8"""
    scaled = np.clip((plane - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.rint(255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def draw_match(template, scan, matrix, grid, volume, folder, name, deface=False):
    """Write the pictures of a registration: <name>.png, <name>_region.png, and the template's to compare.

    Args:
        template: Template.
        scan: ANTs image.
        matrix: (4, 4), points of the template to points of the scan, RAS mm.
        grid: Grid of the volume.
        volume: (X, Y, Z), the volume.
        folder: Folder of the pictures.
        name: Of the scan.
        deface: Show the region and AROUND_MM around it alone.
    """
    view = at_spacing(template.image, VIEW_MM)
    corners = corners_of(template.region)
    moved = resample(scan, view, matrix).numpy()
    compared = {name: (moved, volume), "template": (view.numpy(), template.volume)}
    for stem, (array, cut) in compared.items():
        path = folder / f"{stem}.png"
        if stem == "template" and path.exists():
            continue
        projection = to_grey(projected(cut, grid.affine), *np.percentile(cut, (1, 99.9)))
        panels = framed_planes(array, grid_of(view).affine, corners, deface)
        rows = [side_by_side([panels[0], fit_to(projection, panels[0].shape[0])]), side_by_side(panels[1:])]
        width = max(row.shape[1] for row in rows)
        rows = [
            np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=BACKGROUND) for r in rows
        ]
        with atomic_path(path) as part:
            Image.fromarray(np.concatenate(rows)).save(part)
        if stem == name:
            with atomic_path(folder / f"{name}_region.png") as part:
                Image.fromarray(projection).save(part)


def framed_planes(array, affine, corners, deface):
    """Axial, coronal and sagittal plane through the middle of a region, framed, at least PANEL wide."""
    center = corners.mean(axis=0)
    voxels = corners @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
    bounds = [(round(a), round(b)) for a, b in zip(voxels.min(0), voxels.max(0), strict=True)]
    box, near = np.zeros(array.shape, np.uint8), np.ones(array.shape, np.uint8)
    box[within(bounds, box.shape)] = 1
    if deface:
        wider = [(a - round(AROUND_MM / VIEW_MM), b + round(AROUND_MM / VIEW_MM)) for a, b in bounds]
        near[:] = 0
        near[within(wider, near.shape)] = 1
    low, high = np.percentile(array[near > 0], (1, 99.5))
    panels = []
    planes, frames = planes_of(array, affine, center), planes_of(box, affine, center)
    for plane, frame, kept in zip(planes, frames, planes_of(near, affine, center), strict=True):
        panel = to_grey(plane, low, high)
        panel[kept == 0] = BACKGROUND
        times = max(1, int(np.ceil(PANEL / panel.shape[1])))
        panel, frame = enlarged(panel, times), enlarged(frame, times)
        panel[frame.astype(bool) & ~ndimage.binary_erosion(frame, border_value=0)] = BOX_COLOUR
        panels.append(panel)
    return panels


def enlarged(panel, times):
    """A panel whose pixels are squares of so many pixels. Shapes: (rows, columns, ...)"""
    return panel.repeat(times, axis=0).repeat(times, axis=1)


def projected(array, affine):
    """Axial maximum-intensity projection, right and front left. Shapes: (X, Y, Z) -> (rows, columns)"""
    return turn(array, affine)[0].max(axis=2)[::-1, ::-1].T


def fit_to(panel, rows):
    """A panel enlarged to so many rows."""
    image = Image.fromarray(panel)
    return np.asarray(image.resize((max(1, round(rows * image.width / image.height)), rows)))


def draw_region(template, region, path):
    """Write projections of the template from above, front and side, with the region's frame."""
    view = at_spacing(template, VIEW_MM)
    grid = grid_of(view)
    voxels = corners_of(region) @ np.linalg.inv(grid.affine)[:3, :3].T + np.linalg.inv(grid.affine)[:3, 3]
    bounds = [(round(a), round(b)) for a, b in zip(voxels.min(0), voxels.max(0), strict=True)]
    box = np.zeros(view.shape, np.uint8)
    box[within(bounds, box.shape)] = 1
    panels = []
    for axis in (2, 1, 0):
        flat = view.numpy().max(axis=axis)[::-1, ::-1].T
        frame = box.max(axis=axis)[::-1, ::-1].T
        panel = to_grey(flat, *np.percentile(flat, (1, 99.8)))
        panel, frame = enlarged(panel, 2), enlarged(frame, 2)
        panel[frame.astype(bool) & ~ndimage.binary_erosion(frame, border_value=0)] = BOX_COLOUR
        panels.append(panel)
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


def write_page(rows, folder, settings):
    """Write qc.html.

    Args:
        rows: Of status.csv.
        folder: Output folder, with qc/.
        settings: Dictionary, shown at the end.
    """

    def order(row):
        return (LATE.get(row["step"], 0), float(row["distinct"] or 0), row["subject"])

    thumbs, figures, rest = [], [], []
    for row in sorted(rows, key=order):
        name, step = html.escape(row["subject"]), html.escape(row["step"])
        reason = html.escape(row["reason"])
        kind = ' class="look"' if row["step"] not in LATE else ""
        told = f"<b>{name}</b> {step}" + (f': <span class="reason">{reason}</span>' if reason else "")
        if not (folder / "qc" / f"{row['subject']}.png").exists():
            rest.append(f"<tr><td>{name}</td><td>{step}</td><td>{reason}</td></tr>")
            continue
        measured = f"stands out {row['distinct']}, mutual information {row['nmi']}, covered {row['coverage']}"
        thumbs.append(
            f'<a href="#{name}"{kind}><img loading="lazy" src="qc/{name}_region.png" alt="">{name}</a>'
        )
        figures.append(
            f'<figure id="{name}"{kind}><figcaption>{told} <span class="number">{measured}</span>'
            f"</figcaption>"
            f'<div class="pair"><img loading="lazy" src="qc/{name}.png" alt="{name}">'
            f'<img class="over" loading="lazy" src="qc/template.png" alt="template"></div></figure>'
        )
    done = sum(row["step"] == "done" for row in rows)
    flagged = sum(row["step"] == "flagged" for row in rows)
    page = PAGE.substitute(
        done=done,
        flagged=flagged,
        others=len(rows) - done - flagged,
        unseen=len(rest),
        thumbs="".join(thumbs),
        figures="\n".join(figures),
        rest="".join(rest),
        settings=html.escape(json.dumps(settings, indent=1)),
    )
    with atomic_path(folder / "qc.html") as part:
        part.write_text(page, encoding="utf-8")

"""Pictures of volumes: planes, projections, sheets, GIFs and curves, all in one orientation.

Radiological view, whatever the affine: the patient's right is on the left of an axial or coronal picture,
front or top is up; in a sagittal one the front is on the left.
"""

from volumetric.files import atomic_path, volume_to_array
from volumetric.geometry import spacing_of, turn

import numpy as np
from nibabel import affines
from PIL import Image, ImageDraw, ImageFont

CAPTIONED = 720  # columns of a sheet with a caption, at least
GAP, EDGE, MARGIN = 64, 255, 24  # grey values between tiles, between halves of a sheet, around a view


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Planes and projections                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def canonical(array, affine):
    """An array with its axes to the right, to the front and up, and the size of its voxels.

    Shapes: (X, Y, Z, ...), affine (4, 4) mm -> (X', Y', Z', ...), (3,) mm
    """
    array, affine = turn(array, affine)
    return array, spacing_of(affine)


def grey(picture):
    """Values in [0, 1] as uint8."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def axial_pictures(volumes, affine):
    """Middle axial slice and axial maximum-intensity projection, a pixel for a voxel.

    Shapes: (N, 1, Z, X, Y) in [0, 1] -> two arrays (N, rows, columns) uint8
    """
    array, _ = canonical(np.moveaxis(np.asarray(volumes)[:, 0], (2, 3, 1, 0), (0, 1, 2, 3)), affine)
    planes = array[:, :, array.shape[2] // 2], array.max(axis=2)  # (X', Y', N)
    return [grey(plane[::-1, ::-1].transpose(2, 1, 0)) for plane in planes]


def plane_views(volume, affine):
    """Middle planes and maximum-intensity projections with square pixels.

    Args:
        volume: (1, Z, X, Y) in [0, 1].
        affine: (4, 4), mm.

    Returns:
        Six arrays (rows, columns) uint8: axial, coronal and sagittal plane, then the three projections.
    """
    array, spacing = canonical(np.asarray(volume_to_array(volume), dtype=np.float32), affine)
    views = []
    for reduce in (lambda a, axis: np.take(a, a.shape[axis] // 2, axis), np.max):
        for axis, across, up in ((2, 0, 1), (1, 0, 2), (0, 1, 2)):  # axial, coronal, sagittal
            plane = reduce(array, axis=axis)[::-1, ::-1].T
            views.append(square_pixels(plane, spacing[up], spacing[across], min(spacing)))
    return views


def square_pixels(plane, height, width, size):
    """uint8 picture of a plane of pixels `height` x `width` mm, resampled to `size` mm."""
    rows, columns = round(plane.shape[0] * height / size), round(plane.shape[1] * width / size)
    return np.asarray(Image.fromarray(grey(plane)).resize((columns, rows), Image.Resampling.BILINEAR))


BAR_MM = 20.0


def annotated(volume, affine, caption, edge=128):
    """Axial plane and projection, beside them the coronal and sagittal ones, with sides, bar and caption.

    Args:
        volume: (1, Z, X, Y) in [0, 1].
        affine: (4, 4), mm.
        caption: Text below.
        edge: Pixels of the widest view; all views have one scale.

    Returns:
        (rows, 4 * edge) uint8.
    """
    views = plane_views(volume, affine)
    scale = edge / max(max(view.shape) for view in views)
    bar = round(BAR_MM / min(affines.voxel_sizes(affine)) * scale)  # pixels
    axial, coronal, sagittal = views[0::3], views[1::3], views[2::3]
    low = max(round(view.shape[0] * scale) for view in (*coronal, *sagittal))
    height = max(2 * low, *(round(view.shape[0] * scale) for view in axial))
    large = [marked(view, scale, (edge, height), "RL", bar) for view in axial]
    small = [
        np.concatenate(
            [marked(v, scale, (edge, n), sides) for v, n in zip(two, (low, height - low), strict=True)]
        )
        for two, sides in ((coronal, "RL"), (sagittal, "AP"))
    ]
    return captioned(np.concatenate([*large, *small], axis=1), caption)


def captioned(picture, caption, size=10):
    """A picture with a line of text of `size` pixels below.

    Shapes: (H, W) or (H, W, 3) -> (H + size + 4, W), or with 3 colours
    """
    strip = Image.new("L", (picture.shape[1], size + 4), 0)
    text, font = caption.encode("ascii", "replace").decode(), ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((4, 1), text, fill=EDGE, font=font)
    return np.concatenate(alike([picture, np.asarray(strip)]), axis=0)


def alike(pictures):
    """Pictures of which all have colours, or none. Shapes: [(H, W) or (H, W, 3)] -> the same of one kind"""
    if len({picture.ndim for picture in pictures}) == 1:
        return pictures
    return [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p for p in pictures]


def labelled_views(volume, affine, label, edge=128, beside=None):
    """Axial slice and projection of a volume with its sides and a line of text.

    Args:
        volume: (1, Z, X, Y) in [0, 1].
        affine: (4, 4), mm.
        label: The text.
        edge: Pixels of a view.
        beside: Picture (H, W) or (H, W, 3) of what lies where the volume does, shown on its left.

    Returns:
        (rows, columns) uint8, or (rows, columns, 3) with a picture that has colours.
    """
    views = plane_views(volume, affine)
    views, scale = [views[0], views[3]], edge / max(views[0].shape)
    if beside is not None:
        size = views[0].shape[::-1]
        views.insert(0, np.asarray(Image.fromarray(beside).resize(size, Image.Resampling.NEAREST)))
    height = round(views[1].shape[0] * scale)
    shown = [marked(view, scale, (edge, height), "RL") for view in views]
    return captioned(np.concatenate(alike(shown), axis=1), label)


def sheet_of(pictures, columns, caption):
    """Pictures in rows of `columns`, in tiles of the largest one's size, and a line of text below all."""
    pictures = alike(pictures)
    high = max(picture.shape[0] for picture in pictures)
    wide = max(picture.shape[1] for picture in pictures)
    tiles = []
    for picture in pictures:
        missing = [(0, high - picture.shape[0]), (0, wide - picture.shape[1])]
        tiles.append(np.pad(picture, [*missing, *([(0, 0)] if picture.ndim == 3 else [])]))
    return captioned(tile(np.stack(tiles), columns), caption)


def enlarged(view, caption, smallest=256):
    """A view as large as it must be to have `smallest` rows, with its sides and a line of text below.

    Shapes: (h, w) uint8 -> (H, W), h and w times a whole number, and the text's rows
    """
    factor = max(1, -(-smallest // view.shape[0]))
    return captioned(marked(view, factor, tuple(factor * n for n in view.shape[::-1]), "RL"), caption)


def marked(view, scale, size, sides="", bar=0):
    """A view in the middle of a picture of (columns, rows) pixels, with its two sides and a bar below."""
    shape = [max(1, round(n * scale)) for n in view.shape[1::-1]]
    shown = Image.fromarray(view)
    canvas = Image.new(shown.mode, size, (MARGIN,) * len(shown.getbands()))
    how = Image.Resampling.BILINEAR if view.ndim == 2 else Image.Resampling.NEAREST  # colours are labels
    place = tuple((a - b) // 2 for a, b in zip(size, shape, strict=True))
    canvas.paste(shown.resize(shape, how), place)
    draw = ImageDraw.Draw(canvas)
    for side, left in zip(sides, (3, size[0] - 9), strict=False):
        outline = {"stroke_width": 1, "stroke_fill": "black"}  # legible on bright tissue, too
        draw.text((left, size[1] // 2 - 6), side, fill="white", **outline)
    if bar:
        draw.rectangle((4, size[1] - 5, 4 + bar, size[1] - 4), fill="white")
    return np.asarray(canvas)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Sheets                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def tile(pictures, columns):
    """Pictures in rows of `columns`, a one-pixel gap between them. Shapes: (N, h, w, ...) -> (H, W, ...)"""
    number, height, width, *colours = pictures.shape
    rows = -(-number // columns)
    gaps = [(0, rows * columns - number), (0, 1), (0, 1), *((0, 0) for _ in colours)]
    padded = np.pad(pictures, gaps, constant_values=GAP)
    grid = padded.reshape(rows, columns, height + 1, width + 1, *colours)
    return grid.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), *colours)


def contact_sheet(volumes, affine, columns, caption=""):
    """Axial slices on the left, their projections on the right; with a caption large enough to read it.

    Shapes: (N, 1, Z, X, Y) -> (H, W)
    """
    slices, projections = axial_pictures(volumes, affine)
    left, right = tile(slices, columns), tile(projections, columns)
    gap = np.full((len(left), 8), EDGE, np.uint8)
    sheet = np.concatenate([left, gap, right], axis=1)
    if not caption:
        return sheet
    factor = -(-CAPTIONED // sheet.shape[1])
    text = f"{caption}; axial middle slices, then projections; the patient's right is on the left"
    return captioned(sheet.repeat(factor, axis=0).repeat(factor, axis=1), text, 12)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Files                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def enlarged_picture(picture, smallest=512):
    """Image of a picture; a small one is enlarged to `smallest` pixels without interpolation."""
    image = Image.fromarray(picture)
    factor = -(-smallest // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image


def save_picture(picture, path, smallest=512):
    """Write a picture, enlarged if it is small."""
    image = enlarged_picture(picture, smallest)
    with atomic_path(path) as part:
        image.save(part)


def save_gif(pictures, path, seconds_per_frame=0.08):
    """Write pictures (N, H, W) uint8 as an endless GIF."""
    first, *rest = map(Image.fromarray, pictures)
    with atomic_path(path) as part:
        first.save(part, save_all=True, append_images=rest, duration=int(1000 * seconds_per_frame), loop=0)


def new_axes(columns=1, rows=1, width=4.2, height=3.4):
    """A matplotlib figure, inches, and its axes, (rows * columns,), without a display."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure((width * columns, height * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure, path):
    """Write a matplotlib figure in the format of the path's suffix."""
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)


def save_curve(values, path, label):
    """Write a curve of positive values over their number, on a logarithmic scale."""
    figure, (axes,) = new_axes(width=6.4, height=3.6)
    axes.semilogy(values, color="black", linewidth=1.2)
    axes.set(xlabel="step", ylabel=label, title=f"last {values[-1]:.4f}")
    axes.grid(axis="y", color="0.85")
    save_figure(figure, path)

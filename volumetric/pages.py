"""Pages in one file: their style, and tables, pictures and plots inside them."""

import base64
import html
import io
import string
from dataclasses import dataclass
from pathlib import Path

from volumetric.files import atomic_path

import numpy as np

ROUNDING = 1e-6  # share of a value below which its deviation is none
WIDE = 6.0  # inches of a figure that is not made to fit a narrow page, but scrolls there

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 1.5rem auto; padding: 0 1.5rem;
  color: #222; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
.verdicts { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
.verdict { border: 1px solid #ddd; border-left: 6px solid #999; border-radius: 4px; padding: .5rem .8rem;
  flex: 1 1 24rem; min-width: 0; box-sizing: border-box; }
.verdict.good { border-left-color: #2c8a4b; }
.verdict.bad { border-left-color: #c0392b; }
.verdict.good.unsure { border-left-color: #999; }
.verdict.bad.unsure { border-left-color: #e0a020; }
.verdict h3 { margin: 0; font-size: 1rem; }
.verdict p { margin: .2rem 0; }
.verdict ul { margin: .2rem 0 0; padding-left: 1.1rem; font-size: .9rem; }
.verdict li { margin-top: .25rem; }
.mark { font-weight: 600; }
.mark.good { color: #2c8a4b; }
.mark.bad { color: #c0392b; }
.note { display: block; color: #555; font-size: .8rem; line-height: 1.35; }
.path { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; white-space: nowrap; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
td.explained { white-space: normal; min-width: 13rem; }
.small td { white-space: normal; }
.small td:first-child { white-space: nowrap; }
.small td + td { min-width: 12rem; overflow-wrap: anywhere; }
tr:nth-child(even) { background: #f6f6f4; }
.warning { background: #fff3d6; border-left: 4px solid #e0a020; padding: .3rem .8rem; margin: .3rem 0; }
.sheets { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; min-width: 0; max-width: 100%; }
figcaption { color: #555; font-size: .85rem; width: 0; min-width: 100%; }
img { max-width: 100%; background: #000; }
svg { max-width: 100%; height: auto; }
.small { color: #555; font-size: .85rem; }
@media (max-width: 40rem) {
  body { margin: .5rem auto; padding: 0 .6rem; }
  .wide svg { max-width: none; }
}
"""

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head><body>
<h1>$title</h1>
$body
</body></html>
""")


def write_page(path, title, body, style=""):
    """Write an HTML page of a title and the HTML below it; `style` comes after STYLE."""
    with atomic_path(path) as part:
        text = PAGE.substitute(title=html.escape(title), style=STYLE + style, body=body)
        part.write_text(text, encoding="utf-8")


def niivue():
    """Text of NiiVue, which shows volumes, below its licence, to stand inside a script element."""
    folder = Path(__file__).resolve().parent / "niivue"
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    script = (folder / "niivue.umd.js").read_text(encoding="utf-8")
    return f"/*\nNiiVue\n{licence}*/\n" + script.replace("</script", "<\\/script")


def three(value):
    """Three significant digits; "none" where there is no number."""
    return "none" if value is None or not np.isfinite(value) else f"{value:.3g}"


def give_or_take(value, deviation):
    """12.7 ± 0.31; the value alone where the deviation is that of rounding."""
    if value is None or deviation is None or deviation <= ROUNDING * max(abs(value), ROUNDING):
        return three(value)
    return f"{three(value)}\u00a0±\u00a0{three(deviation)}"


@dataclass(frozen=True)
class Explained:
    """A table cell with a line of explanation below."""

    text: str
    note: str


def duration(seconds):
    """A time in words: "40 seconds", "3.5 hours", "12 days"."""
    for unit, length, most in (("seconds", 1, 90), ("minutes", 60, 90), ("hours", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.3g} days"


def rows_of(head, rows):
    """An HTML table; cells that are numbers are right-aligned, (text, class) pairs are marks."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(cell(value) for value in row) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def cell(value):
    """One table cell."""
    if isinstance(value, tuple):
        return f'<td class="mark {value[1]}">{html.escape(value[0])}</td>'
    if isinstance(value, Explained):
        note = f'<span class="note">{html.escape(value.note)}</span>'
        return f'<td class="explained">{html.escape(value.text)}{note}</td>'
    if isinstance(value, float | int):
        return f'<td class="number">{three(value)}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def picture(pixels, caption, width=None):
    """A figure of grey pixels (H, W) in [0, 255], as PNG in the page."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG", optimize=True)
    size = f' width="{width}"' if width else ""
    source = base64.b64encode(data.getvalue()).decode()
    return (
        f'<figure><img{size} alt="{html.escape(caption)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def section(title, figures, note=""):
    """A heading above figures."""
    return f'<h2>{title}</h2>{note}<div class="sheets">{"".join(figures)}</div>'


def drawing(figure):
    """A matplotlib figure as SVG in the page."""
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    wide = " wide" if figure.get_figwidth() > WIDE else ""
    return f'<div class="scroll{wide}">{text[text.index("<svg") :]}</div>'

"""The house in one picture: rooms, what imports what, and the modules of the ground by floor.

    python tests/benchmarks/house.py

writes docs/pictures/house.svg from the imports of the code; tests/test_house.py asks that this is the
picture in docs/. A room stands above all that it imports. Lines to the ground are left out: all stand on it.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.test_house import ARROWS  # noqa: E402

GROUND = "volumetric"
PACKAGING = ("cow3d", "setup")  # import nothing of the house, and are imported by nothing
WIDTH, MARGIN = 1000, 16
ROOM_HEIGHT, FLOOR_GAP = 34, 44
MODULE_HEIGHT, MODULE_GAP = 24, 8
PICTURE = ROOT / "docs" / "pictures" / "house.svg"


@dataclass(frozen=True)
class Box:
    """A rectangle with a name, pixels from the upper left corner."""

    name: str
    x: float
    y: float
    width: float
    height: float

    def svg(self, fill: str, text: str) -> str:
        """The rectangle, and a text in its middle."""
        middle, line = self.x + self.width / 2, self.y + self.height / 2 + 4
        return (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" height="{self.height:g}" rx="4" '
            f'fill="{fill}" stroke="#57606a"/>\n'
            f'<text x="{middle:g}" y="{line:g}" font-size="12">{escape(text)}</text>'
        )


def floors_of(below: dict[str, set[str]]) -> dict[str, int]:
    """How many floors lie under each name: 0 where it imports nothing, or one above the highest."""
    floors: dict[str, int] = {}

    def floor(name):
        if name not in floors:
            floors[name] = 1 + max((floor(other) for other in below[name]), default=-1)
        return floors[name]

    for name in below:
        floor(name)
    return floors


def rooms_below() -> dict[str, set[str]]:
    """{room: rooms that it imports}, without the ground."""
    below: dict[str, set[str]] = {}
    for module, others in ARROWS.items():
        room = module.split(".")[0]
        if room != GROUND and room not in PACKAGING:
            below.setdefault(room, set()).update(other.split(".")[0] for other in others)
    return {room: others - {room, GROUND} for room, others in below.items()}


def ground_below() -> dict[str, set[str]]:
    """{module of the ground: those that it imports}."""
    return {
        module.removeprefix(GROUND + "."): {other.removeprefix(GROUND + ".") for other in others} - {GROUND}
        for module, others in ARROWS.items()
        if module.startswith(GROUND + ".")
    }


def rows_of(below: dict[str, set[str]]) -> list[list[str]]:
    """Names floor by floor, the highest first, each floor in alphabetical order."""
    floors = floors_of(below)
    return [sorted(n for n in below if floors[n] == floor) for floor in range(max(floors.values()), -1, -1)]


def room_boxes(below: dict[str, set[str]]) -> dict[str, Box]:
    """Where each room stands."""
    boxes = {}
    for floor, names in enumerate(rows_of(below)):
        width = (WIDTH - 2 * MARGIN) / len(names)
        for place, name in enumerate(names):
            box_width = min(width - 2 * MARGIN, 190)
            x = MARGIN + place * width + (width - box_width) / 2
            boxes[name] = Box(name, x, MARGIN + floor * (ROOM_HEIGHT + FLOOR_GAP), box_width, ROOM_HEIGHT)
    return boxes


def arrow(above: Box, under: Box) -> str:
    """A line from one room down to another."""
    start_x, start_y = above.x + above.width / 2, above.y + above.height
    end_x, end_y = under.x + under.width / 2, under.y - 3
    return (
        f'<line x1="{start_x:g}" y1="{start_y:g}" x2="{end_x:g}" y2="{end_y:g}" stroke="#0969da" '
        f'stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def ground_svg(top: float) -> tuple[str, float]:
    """The ground with its modules, floor by floor, and where it ends."""
    parts, y = [], top + 30.0
    for names in rows_of(ground_below()):
        width = (WIDTH - 4 * MARGIN) / max(len(names), 7)
        x = (WIDTH - width * len(names)) / 2
        for place, name in enumerate(names):
            box = Box(name, x + place * width + 3, y, width - 6, MODULE_HEIGHT)
            parts.append(box.svg("#ffffff", f"{name}.py"))
        y += MODULE_HEIGHT + MODULE_GAP
    frame = Box(GROUND, MARGIN, top, WIDTH - 2 * MARGIN, y - top + MODULE_GAP)
    title = "volumetric/, the ground: a module imports only what lies below it"
    parts.insert(0, frame.svg("#dafbe1", "").split("\n")[0])
    parts.insert(1, f'<text x="{WIDTH / 2:g}" y="{top + 20:g}" font-size="12">{title}</text>')
    return "\n".join(parts), y + MODULE_GAP


def picture() -> str:
    """The whole picture, as SVG."""
    below = rooms_below()
    boxes = room_boxes(below)
    arrows = [arrow(boxes[room], boxes[other]) for room in sorted(below) for other in sorted(below[room])]
    rooms = []
    for name in sorted(boxes):
        program = (ROOT / f"{name}.py").is_file()
        text = f"{name}.py" if program else f"{name}/"
        rooms.append(boxes[name].svg("#ddf4ff" if program else "#fff8c5", text))
    ground, end = ground_svg(max(box.y + box.height for box in boxes.values()) + 20)
    height = end + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'font-family="sans-serif" text-anchor="middle">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#0969da"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>',
            *arrows,
            *rooms,
            ground,
            "</svg>",
            "",
        ]
    )


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description="Draw docs/pictures/house.svg from the imports.").parse_args()
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"The house is in {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""Draws docs/pictures/*.svg from the weights that examples/patterns.cpp writes:

    build/examples/example_patterns build/patterns && python3 docs/pictures.py build/patterns

All but attention_rows.svg, which examples/attention_rows.cpp, a model that learns, draws itself.
"""

import csv
import sys
from pathlib import Path

CELL, GAP, TEXT, SHADES = 3, 12, 18, 8


def shades(path):
    """The weights of a CSV file, each row relative to its largest, in SHADES steps; 0: no weight."""
    rows = [[float(w) for w in row] for row in csv.reader(path.open())]
    return [[0 if w <= 0 else max(1, round(SHADES * w / max(row))) for w in row] for row in rows]


def rectangles(grid):
    """Covers all cells of one shade above 0 with as few rectangles as a greedy walk finds."""
    grid, n = [row[:] for row in grid], len(grid)
    for i in range(n):
        for j in range(n):
            if not (shade := grid[i][j]):
                continue
            right, below = j, i
            while right < n and grid[i][right] == shade:
                right += 1
            while below < n and all(cell == shade for cell in grid[below][j:right]):
                grid[below][j:right] = [0] * (right - j)
                below += 1
            yield shade, j, i, right - j, below - i


def panel(title, grid, x, y):
    side = CELL * len(grid)
    parts = [f'<text x="{x}" y="{y + 12}">{title}</text>',
             f'<rect x="{x}" y="{y + TEXT}" width="{side}" height="{side}" fill="#eee"/>',
             f'<g transform="translate({x} {y + TEXT}) scale({CELL})" fill="#1f4e9c">']
    for shade in range(1, SHADES + 1):
        path = "".join(f"M{j} {i}h{w}v{h}h-{w}z" for s, j, i, w, h in rectangles(grid) if s == shade)
        if path:
            parts.append(f'<path opacity="{shade / SHADES:.3g}" d="{path}"/>')
    return "\n".join([*parts, "</g>"])


def draw(path, panels, columns):
    """`panels`: (title, grid) of one size, row by row."""
    side = CELL * len(panels[0][1])
    width = GAP + columns * (side + GAP)
    height = GAP + -(-len(panels) // columns) * (side + TEXT + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="12" shape-rendering="crispEdges">',
             '<rect width="100%" height="100%" fill="#fff"/>']
    for k, (title, grid) in enumerate(panels):
        parts.append(panel(title, grid, GAP + k % columns * (side + GAP),
                           GAP + k // columns * (side + TEXT + GAP)))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def main():
    folder, pictures = Path(sys.argv[1]), Path(__file__).parent / "pictures"
    pictures.mkdir(exist_ok=True)
    names = sorted(f.stem for f in folder.glob("*.csv") if not f.stem.endswith("_causal"))
    grids = {name: shades(folder / f"{name}.csv") for name in names}
    for name in names:
        causal = shades(folder / f"{name}_causal.csv")
        draw(pictures / f"{name}.svg", [(name, grids[name]), ("causal", causal)], 2)
    draw(pictures / "gallery.svg", list(grids.items()), 4)


if __name__ == "__main__":
    main()

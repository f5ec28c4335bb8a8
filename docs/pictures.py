"""Draws docs/pictures/*.svg from the weights that examples/patterns.cpp writes:

    build/examples/example_patterns build/patterns && python3 docs/pictures.py build/patterns

Recurrences, which have files of their causal weights alone, have a gallery of their own; their weights
may be below 0. What has no causal form has a file without it. All but attention_rows.svg, which examples/attention_rows.cpp, a model that learns, draws itself.
"""

import csv
import math
import sys
from pathlib import Path

CELL, GAP, TEXT, SHADES = 3, 12, 18, 8


def shades(path, least=1):
    """The weights of a CSV file, each row relative to its largest, in SHADES steps of their sign, at least
    `least`; 0: no weight."""
    rows = [[float(w) for w in row] for row in csv.reader(path.open())]
    return [[shade(w, max(map(abs, row)), least) for w in row] for row in rows]


def shade(weight, largest, least):
    if weight == 0:
        return 0
    return int(math.copysign(max(least, round(SHADES * abs(weight) / largest)), weight))


def rectangles(grid):
    """Covers all cells of one shade other than 0 with as few rectangles as a greedy walk finds."""
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
    for shade in [s for s in range(-SHADES, SHADES + 1) if s]:
        path = "".join(f"M{j} {i}h{w}v{h}h-{w}z" for s, j, i, w, h in rectangles(grid) if s == shade)
        if path:
            below = ' fill="#c2571a"' if shade < 0 else ""
            parts.append(f'<path{below} opacity="{abs(shade) / SHADES:.3g}" d="{path}"/>')
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
    names = sorted({f.stem.removesuffix("_causal") for f in folder.glob("*.csv")})
    grids, recurrent = {}, {}
    for name in names:
        causal = folder / f"{name}_causal.csv"
        if (both := folder / f"{name}.csv").exists():
            grids[name] = shades(both)
            panels = [(name, grids[name])] + ([("causal", shades(causal))] if causal.exists() else [])
            draw(pictures / f"{name}.svg", panels, len(panels))
        else:  # what is nothing beside the row's largest is not drawn
            recurrent[name] = shades(causal, least=0)
            draw(pictures / f"{name}.svg", [(name, recurrent[name])], 1)
    draw(pictures / "gallery.svg", list(grids.items()), 4)
    draw(pictures / "recurrences.svg", list(recurrent.items()), 4)


if __name__ == "__main__":
    main()

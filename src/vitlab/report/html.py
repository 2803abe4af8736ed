"""Build HTML pages that need no other file: styles, figures and script are inside."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dee4, #3d444d); --soft: light-dark(#59636e, #9198a1);
  --head: light-dark(#f6f8fa, #151b23); --mark: light-dark(#ddf4ff, #0c2d6b) }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
p { max-width: 56rem } .soft, caption, figcaption { color: var(--soft); font-size: .9rem; text-align: left }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
td.number, th.number { text-align: right } thead th { background: var(--head); position: sticky; top: 0 }
table.sortable thead th { cursor: pointer } th[aria-sort=ascending]::after { content: " ▲" }
th[aria-sort=descending]::after { content: " ▼" } tr.marked { background: var(--mark) }
figure { margin: 1rem 0; max-width: 56rem }
figure img { max-width: 100%; height: auto; background: white; border-radius: 6px }
.columns { columns: 34rem 2; column-gap: 2rem } .columns > * { break-inside: avoid; margin: 0 0 2rem }
pre { background: var(--head); padding: .8rem; overflow-x: auto }
"""

# A click on a column's heading sorts by it, numbers as numbers; a second click reverses the order.
SCRIPT = """
for (const head of document.querySelectorAll("table.sortable thead th")) head.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") === "descending", body = head.closest("table").tBodies[0];
  const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))).forEach(row => body.append(row));
});
"""


def page(title: str, subtitle: str, *sections: str) -> str:
    """A whole page; sections are HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n'
        + "\n".join(sections)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading and the HTML below it."""
    return f"<section><h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def bullets(findings: Iterable[tuple[str, str]]) -> str:
    """A list of findings, each with what to try next if that is not empty; empty without findings."""
    items = [f"{escape(found)}{f' <b>Try:</b> {escape(attempt)}' if attempt else ''}" for found, attempt in findings]
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def in_columns(*parts: str) -> str:
    """Parts in two columns of equal width if the window is wide enough: down the first, then the second."""
    return '<div class="columns">' + "\n".join(parts) + "</div>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | float | tuple[str, float]]],
    *,
    sortable: bool = False,
    marked: Iterable[int] = (),
) -> str:
    """A table; a cell is a text, a number, or a text with the number to sort it by.

    A click on a heading sorts the rows if it is `sortable`; `marked` are indices of highlighted rows.
    """
    filled, marked = [list(row) for row in rows], set(marked)
    classes = ["" if any(isinstance(row[i], str) for row in filled) else ' class="number"' for i in range(len(columns))]

    def cell(content: str | float | tuple[str, float], css: str) -> str:
        text, value = content if isinstance(content, tuple) else (content, None)
        key = "" if value is None else f' data-value="{value:.10g}"'
        return f"<td{css}{key}>{escape(text) if isinstance(text, str) else f'{text:.6g}'}</td>"

    heads = "".join(f"<th{css}>{escape(name)}</th>" for name, css in zip(columns, classes, strict=True))
    lines = [
        ('<tr class="marked">' if index in marked else "<tr>") + "".join(map(cell, row, classes)) + "</tr>"
        for index, row in enumerate(filled)
    ]
    kind, body = ' class="sortable"' if sortable else "", "\n".join(lines)
    return f'<div class="wide"><table{kind}><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def picture(figure: Figure, caption: str) -> str:
    """A figure as a PNG inside the page."""
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png")
    return png(file.getvalue(), caption)


def png(content: bytes, caption: str, width: int | None = None) -> str:
    """A PNG file's content inside the page, at most `width` pixels wide."""
    data, text = b64encode(content).decode("ascii"), escape(caption)
    style = f' style="width: {width}px"' if width else ""
    image = f'<img{style} alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"

"""A report as one HTML file that needs no network: figures inside, tables, verdicts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from resnet_dist import __version__
from resnet_dist.report import bands
from resnet_dist.report.comparison import differing_settings, rows
from resnet_dist.report.facts import RunFacts, named_apart
from resnet_dist.report.overlay import draw
from resnet_dist.report.table import duration

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.6em 0 1.6em; }
th, td { padding: 0.25em 0.9em; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
img { max-width: 100%; }
.bar { display: flex; height: 1.2em; width: 300px; }
th.key { white-space: normal; max-width: 9em; }
.bar span { display: block; height: 100%; }
.key span { display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.4em; }
pre { background: #f6f6f6; padding: 0.7em 1em; overflow-x: auto; }
"""
_PARTS = (
    ("steps", "training steps", "#2a7f62"),
    ("data", "waiting for data", "#e0a030"),
    ("rest", "evaluation, start-up, saves", "#8aa6c1"),
    ("stopped", "stopped, or steps that were lost", "#b23a48"),
)


def page(runs: Sequence[RunFacts]) -> str:
    """The whole file."""
    names = named_apart(runs)
    title = " and ".join(names) if len(names) <= 2 else f"{len(names)} runs"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<img alt="curves" src="data:image/png;base64,{_figure(runs, names)}">',
        "<h2>Results</h2>",
        _table(names, rows(runs)),
        "<h2>Where the time went</h2>",
        _times(runs, names),
    ]
    verdicts = _verdicts(runs, names)
    if verdicts:
        parts += ["<h2>Bands</h2>", f"<pre>{escape(verdicts)}</pre>"]
    if len(runs) > 1:
        settings = differing_settings(runs)
        parts.append("<h2>Settings that differ</h2>")
        parts.append(_table(names, settings) if settings else "<p>None.</p>")
    parts += ["<h2>Starts</h2>", _starts(runs, names)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        f"<p>resnet_dist {escape(__version__)}</p>\n</body></html>\n"
    )


def _figure(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    buffer = io.BytesIO()
    draw(runs, names).savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(names: Sequence[str], lines: Sequence[tuple[str, list[str]]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (title, *values)) + "</tr>"
        for title, values in lines
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _times(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    lines = []
    for run, name in zip(runs, names, strict=True):
        times = run.times
        total = max(times.total, 1e-9)
        bars, cells = [], []
        for key, _, color in _PARTS:
            seconds = float(getattr(times, key))
            bars.append(
                f'<span style="width:{100 * seconds / total:.2f}%;background:{color}"></span>'
            )
            cells.append(f"<td>{duration(seconds)}</td>")
        lines.append(
            f'<tr><td>{escape(name)}</td><td><div class="bar">{"".join(bars)}</div></td>'
            f"{''.join(cells)}</tr>"
        )
    heads = "".join(
        f'<th class="key"><span style="background:{color}"></span>{escape(label)}</th>'
        for _, label, color in _PARTS
    )
    return (
        f'<div class="wide"><table><tr><th></th><th></th>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _verdicts(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    lines: list[str] = []
    for run, name in zip(runs, names, strict=True):
        said = band_lines(run)
        if said:
            lines += [f"{name}: {said[0]}", *said[1:]]
    return "\n".join(lines)


def band_lines(run: RunFacts) -> list[str]:
    """Whether a run lies where runs of its recipe lie; nothing if there is no band for it."""
    if run.config is None or run.samples is None:
        return []
    found = bands.band_of(run.config, run.samples)
    return [] if found is None else bands.verdict(run.records, *found)


def _starts(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    lines = []
    for run, name in zip(runs, names, strict=True):
        for start in run.starts:
            cells = (
                name,
                str(start.get("time", "?")),
                str(start.get("host", "?")),
                str(start.get("world_size", "?")),
                str(start.get("step", "?")),
                str((start.get("versions") or {}).get("torch", "?")),
                str((start.get("versions") or {}).get("git", "?"))[:14],
            )
            lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("run", "time", "host", "ranks", "from step", "torch", "revision")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'

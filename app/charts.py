"""Records to plotly figures: pure functions that return a figure's JSON, drawn in the browser by plotly.js.

Beside plotly's `data` and `layout` a spec has `meta`: `label` (for screen readers), `height` in pixels, `key` (the
legend, drawn as HTML so that it wraps on a phone), `log` (the axis that a button can make logarithmic) or `empty` (a
sentence instead of a figure). Colours that begin with `--` are CSS variables: one spec serves light and dark.
Defences differ by colour and marker, quantities by dash: no meaning is carried by colour alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

from app import text
from app.looks import DASHES, Look
from app.services import DriftRecord, EvalRecord, Proportion
from app.views import Track

Spec = dict[str, Any]

MAX_POINTS = 300
"""Points a line is thinned to: more cannot be seen, and a redrawn curve is sent whole."""
LABEL_WIDTH = 13
"""Characters per line of a label under a bar: three labels fit side by side on a phone."""

TITLE_WIDTH = 44
"""Characters of a line of a panel's title, on a phone."""
MAX_BARS = 8
"""Bars that stand side by side for each measure in one panel."""

PATTERNS = {"before": "/", "after": "", "repaired": "."}
"""Patterns of bars, by the time of measurement."""


def empty(sentence: str, height: int = 320) -> Spec:
    """No figure yet; `sentence` says what to do."""
    return {"data": [], "layout": {}, "meta": {"empty": sentence, "height": height, "label": sentence}}


def loss(tracks: Mapping[str, Track], looks: Mapping[str, Look]) -> Spec:
    """Training loss of each aligned state against steps: raw values pale, with their running mean on top."""
    data: list[Spec] = []
    key: list[Spec] = []
    for key_of_state, track in tracks.items():
        if not track.steps:
            continue
        steps = sorted(track.steps)
        values = [track.steps[step].loss for step in steps]
        look = looks[key_of_state]
        line = {"type": "scatter", "mode": "lines", "x": thin(steps), "name": look.title}
        data.append(
            line
            | {
                "y": thin(rounded(values)),
                "line": {"color": look.colour, "width": 1},
                "opacity": 0.3,
                "hoverinfo": "skip",
            }
        )
        data.append(
            line
            | {
                "y": thin(rounded(running_mean(values))),
                "line": {"color": look.colour, "width": 2.2, "dash": look.dash},
            }
        )
        key.append({"text": look.title, "colour": look.colour, "dash": look.dash})
    if not data:
        return empty(text.LOSS_EMPTY, 240)
    layout = {
        "xaxis": axis(text.AXIS_STEP),
        "yaxis": axis(text.AXIS_LOSS, type="log", tickformat="~g", dtick="D2"),
        "hovermode": "x unified",
    }
    return figure(data, layout, text.LOSS_LABEL, 240, key=key, log="yaxis")


def attack_curves(
    curves: Mapping[str, Mapping[str, Sequence[EvalRecord]]],
    task: str,
    num_steps: int,
    looks: Mapping[str, Look],
    cannot: Collection[str] = (),
) -> Spec:
    """HS and FA of each defence against attack steps, on one axis of percent.

    Args:
        curves: by defence, by evaluation set: records in order of their step.
        task: the evaluation set that yields FA.
        num_steps: length of the attack.
        looks: by defence.
        cannot: states that cannot, rather than will not, do harm: their HS is drawn hollow.
    """
    sets = list(dict.fromkeys(where for sets in curves.values() for where in sets))
    dashes = dict(zip([where for where in sets if where != task], DASHES, strict=False))
    data: list[Spec] = []
    for defence, by_set in curves.items():
        look = looks[defence]
        for where, records in by_set.items():
            measure = "finetune_accuracy" if where == task else "harmful_score"
            points = [(record.step, record.scores[measure]) for record in records if measure in record.scores]
            if not points:
                continue
            is_task = where == task
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{look.title}, {text.measure_of(where)}",
                    "x": [step for step, _ in points],
                    "y": rounded([score.percent for _, score in points]),
                    "customdata": [[*rounded(score.interval), score.n] for _, score in points],
                    "line": {
                        "color": look.colour,
                        "width": 1.4 if is_task else 2.4,
                        "dash": "dot" if is_task else dashes[where],
                    },
                    "marker": {
                        "symbol": [
                            look.marker + ("-open" if record.state in cannot and not is_task else "")
                            for record in records
                            if measure in record.scores
                        ],
                        "size": 5 if is_task else 8,
                        "color": look.colour,
                        "line": {"width": 1.5, "color": look.colour},
                    },
                    "hovertemplate": "%{y:.0f} (%{customdata[0]:.0f}–%{customdata[1]:.0f}), n %{customdata[2]}",
                }
            )
    if not data:
        return empty(text.CURVES_EMPTY, 400)
    shown = [looks[defence] for defence in curves]
    key: list[Spec] = [{"text": look.title, "colour": look.colour, "symbol": look.marker} for look in shown]
    key += [{"text": text.measure_of(where), "colour": "--lab-ink", "dash": dashes[where]} for where in dashes]
    key += [{"text": text.measure_of(task), "colour": "--lab-ink", "dash": "dot"}] if task in sets else []
    if any(record.state in cannot for by_set in curves.values() for records in by_set.values() for record in records):
        key.append({"text": text.HOLLOW, "colour": "--lab-ink", "symbol": "circle", "hollow": True})
    layout = {
        "xaxis": axis(text.AXIS_ATTACK_STEP, range=[-0.02 * num_steps, 1.02 * num_steps]),
        "yaxis": axis(text.AXIS_PERCENT, range=[-3, 103], dtick=25),
        "hovermode": "x unified",
    }
    return figure(data, layout, text.CURVES_LABEL, 400, key=key)


@dataclass(frozen=True)
class Bars:
    """The bars of one defence at one time."""

    look: Look
    when: str
    """`before`, `after` or `repaired`."""
    scores: Mapping[str, Proportion]
    """By evaluation set."""
    cannot: bool = False
    """The model cannot, rather than will not, do harm: its HS is drawn hollow."""


def score_bars(rows: Sequence[Bars], task: str) -> Spec:
    """Bars with 95 % intervals: HS by set and FA, before (hatched) and after (solid) the attack, and repaired (dotted).

    Many bars get a panel for each measure, one under the other, so that they stay wide enough on a phone.

    Args:
        rows: in the order in which they stand side by side.
        task: the evaluation set that yields FA.
    """
    rows = [row for row in rows if row.scores]
    if not rows:
        return empty(text.SCORES_EMPTY, 320)
    sets = list(dict.fromkeys(where for row in rows for where in row.scores))
    panels = [[where] for where in sets] if len(rows) > MAX_BARS else [sets]
    domains, height = panel_domains(len(panels), 124 if len(panels) > 1 else 284, 36)
    data: list[Spec] = []
    layout: Spec = {"barmode": "group", "bargap": 0.3 if len(panels) == 1 else 0.04, "bargroupgap": 0.08}
    for number, (measured, (bottom, top)) in enumerate(zip(panels, domains, strict=True)):
        suffix = str(number + 1) if number else ""
        place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        data += [_bar(row, [where for where in measured if where in row.scores], task) | place for row in rows]
        many = len(panels) > 1
        layout[f"xaxis{suffix}"] = axis("", tickangle=0, anchor=f"y{suffix}", showticklabels=not many)
        layout[f"yaxis{suffix}"] = axis(
            text.AXIS_PERCENT, range=[0, 105], dtick=50 if many else 25, domain=[bottom, top], anchor=f"x{suffix}"
        )
    if len(panels) > 1:
        layout["margin"] = {"l": 56, "r": 16, "t": 30, "b": 20}
        layout["annotations"] = [
            panel_title(text.measure_of(where), top) for where, (_, top) in zip(sets, domains, strict=True)
        ]
    looks = {row.look.title: row.look for row in rows}
    key: list[Spec] = [{"text": title, "colour": look.colour, "fill": True} for title, look in looks.items()]
    for when in dict.fromkeys(row.when for row in rows):
        key.append({"text": text.WHEN[when], "colour": "--lab-ink", "fill": True, "pattern": PATTERNS[when]})
    if any(row.cannot for row in rows):
        key.append({"text": text.HOLLOW, "colour": "--lab-ink", "fill": True, "hollow": True})
    return figure(data, layout, text.SCORES_LABEL, height + 56, key=key)


def _bar(row: Bars, measured: Sequence[str], task: str) -> Spec:
    """The bars of one defence at one time, by measure."""
    look, scores = row.look, [row.scores[where] for where in measured]
    hollow = [row.cannot and where != task for where in measured]
    shapes = ["" if empty else PATTERNS[row.when] for empty in hollow]
    surfaces = ["--lab-surface" if shape or empty else look.colour for shape, empty in zip(shapes, hollow, strict=True)]
    return {
        "type": "bar",
        "name": f"{look.title}, {text.WHEN[row.when]}",
        "x": ["<br>".join(wrap(text.measure_of(where), LABEL_WIDTH)) for where in measured],
        "y": rounded([score.percent for score in scores]),
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": rounded([score.interval[1] - score.percent for score in scores]),
            "arrayminus": rounded([score.percent - score.interval[0] for score in scores]),
            "thickness": 1.2,
            "width": 3,
            "color": "--lab-ink",
        },
        "marker": {
            "color": surfaces,
            "line": {"color": look.colour, "width": 1.5},
            "pattern": {"shape": shapes, "fgcolor": look.colour, "size": 6},
        },
        "customdata": [score.n for score in scores],
        "hovertemplate": "%{y:.0f} %, n %{customdata}<extra>%{fullData.name}</extra>",
    }


def panel_domains(count: int, height: int, gap: int) -> tuple[list[tuple[float, float]], int]:
    """Where panels lie one under the other, uppermost first: (bottom, top) as shares of all; and pixels of all.

    Args:
        count: of panels.
        height: of each, in pixels.
        gap: between two, in pixels.
    """
    whole = count * height + (count - 1) * gap
    tops = [1 - number * (height + gap) / whole for number in range(count)]
    return [(max(0.0, top - height / whole), top) for top in tops], whole


def panel_title(words: str, top: float) -> Spec:
    """A panel's title, above its left corner."""
    return {
        "text": "<br>".join(escape(line) for line in wrap(words, TITLE_WIDTH)),
        "align": "left",
        "showarrow": False,
        "font": {"color": "--lab-ink", "size": 12},
        **{"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom"},
    }


def drift(records: Mapping[str, DriftRecord], looks: Mapping[str, Look]) -> Spec:
    """Embedding drift by layer, one line per defence; records and looks by defence."""
    if not records:
        return empty(text.DRIFT_EMPTY, 300)
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": looks[defence].title,
            "x": list(range(len(record.drift))),
            "y": rounded(record.drift),
            "line": {"color": looks[defence].colour, "width": 2.2, "dash": looks[defence].dash},
            "marker": {"symbol": looks[defence].marker, "size": 7},
        }
        for defence, record in records.items()
    ]
    key = [
        {"text": look.title, "colour": look.colour, "symbol": look.marker, "dash": look.dash}
        for look in (looks[defence] for defence in records)
    ]
    layout = {
        "xaxis": axis(text.AXIS_LAYER, dtick=1 if len(data[0]["x"]) <= 16 else 4),
        "yaxis": axis(text.AXIS_DRIFT, rangemode="tozero"),
        "hovermode": "x unified",
    }
    return figure(data, layout, text.DRIFT_LABEL, 300, key=key)


def figure(data: list[Spec], layout: Spec, label: str, height: int, **meta: Any) -> Spec:
    """A spec in the house style; `uirevision` keeps the viewer's zoom when new data arrive."""
    base = {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 10, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--lab-muted", "family": "--lab-font", "size": 12},
        "hoverlabel": {"bgcolor": "--lab-surface", "bordercolor": "--lab-line", "font": {"color": "--lab-ink"}},
        "showlegend": False,
        "uirevision": "keep",
    }
    return {"data": data, "layout": base | layout, "meta": {"label": label, "height": height, **meta}}


def axis(title: str, **settings: Any) -> Spec:
    """An axis in the house style."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "--lab-line",
        "linecolor": "--lab-line",
        "zerolinecolor": "--lab-line",
        "automargin": True,
        **settings,
    }


def running_mean(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Exponential running mean with Adam's bias correction, so that it begins at the first value."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        found.append(mean / weight)
    return found


def thin(values: Sequence[Any], limit: int = MAX_POINTS) -> list[Any]:
    """Every k-th value so that at most `limit` remain; the last is always kept."""
    if len(values) <= limit:
        return list(values)
    stride = math.ceil(len(values) / (limit - 1))
    kept = list(values[::stride])
    return kept if (len(values) - 1) % stride == 0 else [*kept, values[-1]]


def rounded(values: Sequence[float]) -> list[float | None]:
    """Four significant digits, enough for a screen; None (a gap in plotly) for values that are not finite."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]

"""Records to plotly figures: pure functions that return a figure's JSON, drawn in the browser by plotly.js.

Beside plotly's `data` and `layout` a spec has `meta`: `label` (what a screen reader says), `height` in pixels, `key`
(the legend, drawn as HTML so that it wraps on a phone), `log` (which axis a button may switch to a logarithm) or
`empty` (a sentence instead of a figure). Colours that begin with `--` are CSS variables: one spec, light and dark.
Defences differ by colour and marker, quantities by dash: no meaning is carried by colour alone.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from textwrap import wrap
from typing import Any

from app import text
from app.looks import DASHES, Look
from app.services import DriftRecord, EvalRecord, Proportion
from app.views import Track

Spec = dict[str, Any]

MAX_POINTS = 300
"""Points a line is thinned to: more cannot be seen, and a redrawn curve is sent whole."""
MAX_DRAWS = 80
PANEL_GAP = 60
"""Pixels between two heat maps of one figure: the upper one's steps and the lower one's title stand there."""
MEASURE_WIDTH = 44
"""Characters of a line of a heat map's title, on a phone."""
LABEL_WIDTH = 13
"""Characters a line of a label under a bar: three labels stand side by side on a phone."""

PATTERNS = {"before": "/", "after": "", "repaired": "."}
"""How bars are filled, by when their scores were measured."""


def empty(sentence: str, height: int = 320) -> Spec:
    """No figure yet; `sentence` says what to do."""
    return {"data": [], "layout": {}, "meta": {"empty": sentence, "height": height, "label": sentence}}


def loss(tracks: Mapping[str, Track], looks: Mapping[str, Look]) -> Spec:
    """Training loss of each aligned state against steps: the raw values pale, their running mean over them."""
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


def score_span(tracks: Sequence[Track]) -> tuple[float, float]:
    """Smallest and largest score above zero of these alignments; (1, 1) if there is none."""
    scores = [score for track in tracks for record in track.scores.values() for score in record.layer_scores]
    above = [score for score in scores if score > 0]
    return (min(above), max(above)) if above else (1.0, 1.0)


def layer_heatmap(
    track: Track, num_steps: int, resample_every: int, span: tuple[float, float] | None = None, title: str = ""
) -> Spec:
    """Layers x scorings: gradient norm of the harmful loss at each attention output; dots mark the drawn layers.

    A column reaches from its scoring to the next; a dot stands in the middle of the steps its draw holds for.

    Args:
        track: what an alignment reported.
        num_steps: length of the alignment.
        resample_every: steps that a draw holds for.
        span: scores at the ends of the colour scale, see `score_span`; by default the track's own.
        title: the alignment, for a screen reader.
    """
    if not track.scores:
        return empty(text.HEATMAP_EMPTY, 360)
    steps = sorted(track.scores)
    scores = [track.scores[step].layer_scores for step in steps]
    num_layers = len(scores[0])
    floor, top = span or score_span([track])
    logs = [[math.log10(max(column[layer], floor)) for column in scores] for layer in range(num_layers)]
    end = max(num_steps, steps[-1] + 1)
    low, high = math.log10(floor), math.log10(top)
    ticks = [low + (high - low) * share for share in (0.0, 1 / 3, 2 / 3, 1.0)]
    heat = {
        "type": "heatmap",
        "x": [*steps, end],
        "y": list(range(num_layers)),
        "z": [rounded(row) for row in logs],
        "zmin": low,
        "zmax": high,
        "customdata": [rounded([column[layer] for column in scores]) for layer in range(num_layers)],
        "colorscale": "Cividis",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{y}<br>gradient norm %{customdata:.4g}<extra></extra>",
        "colorbar": {
            "title": {"text": text.HEATMAP_BAR, "side": "right"},
            "tickvals": ticks,
            "ticktext": [f"{10.0**power:.1g}" for power in ticks],
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
    draws = sorted(track.draws)[-MAX_DRAWS:]
    marks = [(step, layer) for step in draws for layer in track.draws[step].layers]
    shift = min(resample_every, end - steps[0]) / 2
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [step + shift for step, _ in marks],
        "y": [layer for _, layer in marks],
        "name": text.HEATMAP_DRAWN,
        "marker": {
            "symbol": "circle",
            "size": 6 if len(draws) > 24 else 8,
            "color": "#FFFFFF",
            "line": {"color": "#16181D", "width": 1},
        },
        "hovertemplate": "layer %{y} drawn<extra></extra>",
    }
    layout = {
        "xaxis": axis(text.AXIS_STEP, range=[steps[0], end], showgrid=False),
        "yaxis": axis(text.AXIS_LAYER, dtick=1 if num_layers <= 16 else 4, showgrid=False, zeroline=False),
    }
    key = [{"text": text.HEATMAP_DRAWN, "colour": "--lab-ink", "symbol": "circle"}]
    label = f"{title}: {text.HEATMAP_LABEL}" if title else text.HEATMAP_LABEL
    return figure([heat, dots], layout, label, max(300, min(720, 150 + 26 * num_layers)), key=key)


def layer_values(track: Track, title: str = "") -> Spec:
    """Layers x steps of what a method measures in them: a heat map for each measure, one under the other.

    Of several heads their mean is drawn, and the lowest and highest one told on hover.

    Args:
        track: what an alignment reported.
        title: the alignment, for a screen reader.
    """
    if not track.values:
        return empty(text.LAYER_VALUES_EMPTY, 160)
    names = list(dict.fromkeys(name for name, _ in track.values))
    columns = {
        name: {step: track.values[name, step].values for other, step in track.values if other == name} for name in names
    }
    num_layers = max(len(layers) for by_step in columns.values() for layers in by_step.values())
    panel = max(170, min(560, 26 * num_layers))
    whole = len(names) * panel + (len(names) - 1) * PANEL_GAP
    data: list[Spec] = []
    layout: Spec = {"margin": {"l": 56, "r": 16, "t": 30, "b": 46}, "annotations": []}
    for number, (name, by_step) in enumerate(columns.items()):
        top = 1 - number * (panel + PANEL_GAP) / whole
        bottom = max(0.0, top - panel / whole)
        suffix = str(number + 1) if number else ""
        heads = max(len(layer) for layers in by_step.values() for layer in layers)
        heat = _values_heat(by_step, heads)
        heat["colorbar"] = {"thickness": 10, "outlinewidth": 0, "len": top - bottom, "y": (top + bottom) / 2}
        data.append(heat | {"name": escape(name), "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        last = number == len(names) - 1
        layout[f"xaxis{suffix}"] = axis(text.AXIS_STEP if last else "", showgrid=False, anchor=f"y{suffix}")
        layout[f"yaxis{suffix}"] = axis(
            text.AXIS_LAYER,
            dtick=1 if num_layers <= 16 else 4,
            showgrid=False,
            zeroline=False,
            domain=[bottom, top],
            anchor=f"x{suffix}",
        )
        words = text.MEAN_OF_HEADS.format(name=name, heads=heads) if heads > 1 else name
        layout["annotations"].append(
            {
                "text": "<br>".join(escape(line) for line in wrap(words, MEASURE_WIDTH)),
                "align": "left",
                "showarrow": False,
                "font": {"color": "--lab-ink", "size": 12},
                **{"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom"},
            }
        )
    label = text.LAYER_VALUES_LABEL.format(name=", ".join(names))
    return figure(data, layout, f"{title}: {label}" if title else label, whole + 76)


def _values_heat(by_step: Mapping[int, Sequence[Sequence[float]]], heads: int) -> Spec:
    """One heat map of numbers by step, layer and head."""
    steps = thin(sorted(by_step))
    layers = range(max(len(by_step[step]) for step in steps))
    cells = [[by_step[step][layer] if layer < len(by_step[step]) else () for step in steps] for layer in layers]
    ends = "<br>heads from %{customdata[0]:.4g} to %{customdata[1]:.4g}" if heads > 1 else ""
    return {
        "type": "heatmap",
        "x": steps,
        "y": list(layers),
        "z": [rounded([fmean(cell) if cell else math.nan for cell in row]) for row in cells],
        "customdata": [[rounded([min(cell), max(cell)]) if cell else [None, None] for cell in row] for row in cells],
        "colorscale": "Cividis",
        "hovertemplate": f"layer %{{y}}, step %{{x}}<br>%{{z:.4g}}{ends}<extra></extra>",
    }


def layer_bars(track: Track, colour: str) -> Spec:
    """The newest scoring: each layer's score (logarithmic) and the probability that it is drawn; drawn layers solid."""
    if not track.scores:
        return empty(text.BARS_EMPTY, 240)
    record = track.scores[max(track.scores)]
    drawn = set(track.draws[max(track.draws)].layers) if track.draws else set()
    layers = list(range(len(record.layer_scores)))
    marker = {
        "color": [colour if layer in drawn else "--lab-faint" for layer in layers],
        "line": {"color": colour, "width": 1},
        "pattern": {"shape": ["" if layer in drawn else "/" for layer in layers], "fgcolor": colour, "size": 5},
    }
    bar = {"type": "bar", "orientation": "h", "y": layers, "marker": marker}
    data = [
        bar
        | {
            "x": rounded(record.layer_scores),
            "hovertemplate": "layer %{y}<br>score %{x:.4g}<extra></extra>",
        },
        bar
        | {
            "x": rounded([100 * share for share in record.layer_probabilities]),
            "xaxis": "x2",
            "hovertemplate": "layer %{y}<br>probability %{x:.3g} %<extra></extra>",
        },
    ]
    layout = {
        "xaxis": axis(text.AXIS_SCORE, type="log", tickformat="~g", dtick=1, domain=[0, 0.46]),
        "xaxis2": axis(text.AXIS_PROBABILITY, domain=[0.54, 1], anchor="y", rangemode="tozero"),
        "yaxis": axis(text.AXIS_LAYER, dtick=1 if len(layers) <= 16 else 4, showgrid=False),
        "bargap": 0.25,
    }
    key = [
        {"text": text.BARS_DRAWN, "colour": colour, "fill": True},
        {"text": text.BARS_UNDRAWN, "colour": colour, "fill": True, "hatch": True},
    ]
    return figure(data, layout, text.BARS_LABEL, max(240, min(560, 110 + 18 * len(layers))), key=key)


def attack_curves(
    curves: Mapping[str, Mapping[str, Sequence[EvalRecord]]], task: str, num_steps: int, looks: Mapping[str, Look]
) -> Spec:
    """HS and FA of each defence against attack steps, on one axis of percent.

    Args:
        curves: by defence, by evaluation set: records in order of their step.
        task: the evaluation set that yields FA.
        num_steps: length of the attack.
        looks: by defence.
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
                        "symbol": look.marker + ("-open" if is_task else ""),
                        "size": 7,
                        "color": look.colour,
                        "line": {"width": 1.5, "color": look.colour},
                    },
                    "hovertemplate": "%{y:.0f} (%{customdata[0]:.0f}–%{customdata[1]:.0f}), n %{customdata[2]}",
                }
            )
    if not data:
        return empty(text.CURVES_EMPTY, 400)
    shown = [looks[defence] for defence in curves]
    key = [{"text": look.title, "colour": look.colour, "symbol": look.marker} for look in shown]
    key += [{"text": text.measure_of(where), "colour": "--lab-ink", "dash": dashes[where]} for where in dashes]
    key += [{"text": text.measure_of(task), "colour": "--lab-ink", "dash": "dot"}] if task in sets else []
    layout = {
        "xaxis": axis(text.AXIS_ATTACK_STEP, range=[-0.02 * num_steps, 1.02 * num_steps]),
        "yaxis": axis(text.AXIS_PERCENT, range=[-3, 103], dtick=25),
        "hovermode": "x unified",
    }
    return figure(data, layout, text.CURVES_LABEL, 400, key=key)


def score_bars(rows: Sequence[tuple[Look, str, Mapping[str, Proportion]]]) -> Spec:
    """Bars with 95 % intervals: HS by set and FA, before (hatched) and after (solid) the attack, and repaired (dotted).

    Args:
        rows: a defence's look, `before`, `after` or `repaired`, and scores by evaluation set.
    """
    data: list[Spec] = []
    key: dict[str, Spec] = {}
    for look, when, scores in rows:
        if not scores:
            continue
        colour, shape = look.colour, PATTERNS[when]
        percents = [score.percent for score in scores.values()]
        data.append(
            {
                "type": "bar",
                "name": f"{look.title}, {text.WHEN[when]}",
                "x": ["<br>".join(wrap(text.measure_of(where), LABEL_WIDTH)) for where in scores],
                "y": rounded(percents),
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": rounded([s.interval[1] - s.percent for s in scores.values()]),
                    "arrayminus": rounded([s.percent - s.interval[0] for s in scores.values()]),
                    "thickness": 1.2,
                    "width": 3,
                    "color": "--lab-ink",
                },
                "marker": {
                    "color": "--lab-surface" if shape else colour,
                    "line": {"color": colour, "width": 1.5},
                    "pattern": {"shape": shape, "fgcolor": colour, "size": 6},
                },
                "customdata": [score.n for score in scores.values()],
                "hovertemplate": "%{y:.0f} %, n %{customdata}<extra>%{fullData.name}</extra>",
            }
        )
        key[f"{look.title} {when}"] = {
            "text": f"{look.title}, {text.WHEN[when]}",
            "colour": colour,
            "fill": True,
            "hatch": bool(shape),
        }
    if not data:
        return empty(text.SCORES_EMPTY, 320)
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "bargroupgap": 0.08,
        "xaxis": axis("", tickangle=0),
        "yaxis": axis(text.AXIS_PERCENT, range=[0, 105], dtick=25),
    }
    return figure(data, layout, text.SCORES_LABEL, 340, key=list(key.values()))


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
    """A spec in the house style; `uirevision` keeps the viewer's zoom when data arrive."""
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
    """Exponential running mean, corrected for its start (Adam's correction), so that it begins at the first value."""
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
    """Four significant digits, enough for a screen; None (a gap in plotly) for what is not finite."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]

"""Figures of what happens layer by layer while a model is aligned: specs like those of `app.charts`."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from app import text
from app.charts import Spec, axis, empty, figure, panel_domains, panel_title, rounded, thin
from app.views import Track

MAX_DRAWS = 80
"""Draws of layers that are marked, the newest ones."""
PANEL_GAP = 60
"""Pixels between two heat maps of one figure: the upper one's steps and the lower one's title stand there."""


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
    domains, height = panel_domains(len(names), max(170, min(560, 26 * num_layers)), PANEL_GAP)
    data: list[Spec] = []
    layout: Spec = {"margin": {"l": 56, "r": 16, "t": 30, "b": 46}, "annotations": []}
    for number, (name, by_step) in enumerate(columns.items()):
        bottom, top = domains[number]
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
        layout["annotations"].append(panel_title(words, top))
    label = text.LAYER_VALUES_LABEL.format(name=", ".join(names))
    return figure(data, layout, f"{title}: {label}" if title else label, height + 76)


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
        {"text": text.BARS_UNDRAWN, "colour": colour, "fill": True, "pattern": "/"},
    ]
    return figure(data, layout, text.BARS_LABEL, max(240, min(560, 110 + 18 * len(layers))), key=key)

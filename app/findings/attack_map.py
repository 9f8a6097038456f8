"""The recorded map of attacks: HS by learning rate and step, with the published attack's place and the visitor's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import charts, text
from app.components import chooser, figure, section
from app.page import Glance, Page
from app.services import PRESETS, AttackConfig, CellResult, LabConfig, mean_curves, recorded_if_any

SWEEP = "attacks"
OF = "attack-map-of"
PUBLISHED_RATIO = 0.01
"""Learning rate of the published attack over that of its alignment: 1e-5 over 1e-3 (arXiv:2410.09760)."""
PUBLISHED_EPOCHS = 20
PURE_FROM = 0.5
"""p from which an attack stands in the panels of purely harmful data."""
PANEL_HEIGHT = 150
PANEL_GAP = 66


def build(page: Page) -> None:
    """Place and wire the part."""
    results = recorded_if_any(SWEEP)
    if not results:
        return
    gr.HTML(section(text.ATTACK_MAP_TITLE, text.ATTACK_MAP_NOTE), apply_default_css=False)
    options = [
        (f"{title}, {text.set_title(where)}", name, where)
        for name, title in dict.fromkeys((result.defence, result.title) for result in results)
        for where in results[0].harmful_sets
    ]
    shown = [{"id": title, "title": title, "colour": "transparent"} for title, _, _ in options]

    def draw(glance: Glance) -> dict[str, Any]:
        own = own_attack(glance)
        by = {
            title: attack_map([r for r in results if r.defence == name], where, own) for title, name, where in options
        }
        return {"of": OF, "by": by}

    page.show(chooser(OF), lambda _: None, lambda _: {"label": text.SWEEP_SHOWN, "options": shown})
    page.show(figure("attack-map"), own_attack, draw)


def own_attack(glance: Glance) -> tuple[LabConfig, AttackConfig] | None:
    """The run and the attack that the viewer looks at."""
    view = glance.view
    return (view.config, view.attack_config(glance.attack)) if view and glance.attack else None


def strength(config: LabConfig, attack: AttackConfig) -> float:
    """The attack's learning rate over the alignment's."""
    return attack.optimisation.learning_rate / config.alignment.optimisation.learning_rate


def attack_map(
    results: Sequence[CellResult], where: str, own: tuple[LabConfig, AttackConfig] | None = None
) -> charts.Spec:
    """A panel per adapter mode and kind of data: HS, a row per learning rate, a column per measured step.

    Args:
        results: of one defence, after one alignment.
        where: the harmful set.
        own: the visitor's run and attack, which get a mark.
    """
    align_rate = _alignment_rate()
    panels = list(dict.fromkeys((r.attack.harmful_ratio, r.attack.adapter_mode) for r in results))
    rates = sorted({result.attack.optimisation.learning_rate for result in results})
    domains, height = charts.panel_domains(len(panels), PANEL_HEIGHT, PANEL_GAP)
    data: list[charts.Spec] = []
    layout: charts.Spec = {"annotations": [], "hovermode": "closest", "margin": {"l": 56, "r": 16, "t": 30, "b": 46}}
    batch = results[0].attack.optimisation.batch_size
    epoch = results[0].attack.num_samples / batch
    last = max(result.curve[-1].step for result in results)
    for number, ((ratio, mode), (bottom, top)) in enumerate(zip(panels, domains, strict=True)):
        suffix = str(number + 1) if number else ""
        place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        mine = [r for r in results if (r.attack.harmful_ratio, r.attack.adapter_mode) == (ratio, mode)]
        data.append(_heat(mine, rates, where, number) | place)
        marks = [(PUBLISHED_RATIO, PUBLISHED_EPOCHS * epoch, text.ATTACK_MAP_PUBLISHED, "star")]
        if own is not None and _panel_of(own[1], panels) == (ratio, mode):
            optimisation = own[1].optimisation
            samples = optimisation.steps * optimisation.batch_size * optimisation.accumulation
            marks.append(
                (strength(*own), samples / results[0].attack.optimisation.batch_size, text.ATTACK_MAP_OWN, "x")
            )
        data += [_mark(*mark, rates=rates, align_rate=align_rate, last=last) | place for mark in marks]
        layout[f"xaxis{suffix}"] = charts.axis(
            text.AXIS_ATTACK_STEP if number == len(panels) - 1 else "",
            anchor=f"y{suffix}",
            range=[-last / 16, last * 1.1],
        )
        layout[f"yaxis{suffix}"] = charts.axis(
            "",
            domain=[bottom, top],
            anchor=f"x{suffix}",
            tickvals=list(range(len(rates))),
            ticktext=[f"{rate / align_rate:.2g}×" for rate in rates],
            range=[-0.5, len(rates) - 0.5],
        )
        words = text.ATTACK_MAP_PANEL.format(data=text.attack_data_words(ratio), mode=text.ADAPTER_SHORT[mode])
        layout["annotations"].append(charts.panel_title(words, top))
    key = [
        {"text": text.ATTACK_MAP_PUBLISHED, "colour": "--lab-ink", "symbol": "star"},
        *([{"text": text.ATTACK_MAP_OWN, "colour": "--lab-ink", "symbol": "x"}] if own else []),
    ]
    label = text.ATTACK_MAP_LABEL.format(where=text.set_title(where))
    return charts.figure(data, layout, label, height + 90, key=key)


def _alignment_rate() -> float:
    """Learning rate of the alignment that the recorded attacks were made on."""
    return PRESETS["sandbox-intact"].config.alignment.optimisation.learning_rate


def _heat(results: Sequence[CellResult], rates: Sequence[float], where: str, number: int) -> charts.Spec:
    rows: list[list[float | None]] = []
    steps: list[int] = []
    for rate in rates:
        found = mean_curves([r for r in results if r.attack.optimisation.learning_rate == rate], where)
        steps = list(found[0].steps) if found else steps
        rows.append(charts.rounded([each.mean for each in found[0].harmful_score]) if found else [None] * len(steps))
    return {
        "type": "heatmap",
        "x": steps,
        "y": list(range(len(rates))),
        "z": rows,
        "zmin": 0,
        "zmax": 100,
        "colorscale": [[0, "#fff7ec"], [0.5, "#fc8d59"], [1, "#7f0000"]],
        "xgap": 1,
        "ygap": 1,
        "showscale": number == 0,
        "colorbar": {"title": {"text": "HS"}, "thickness": 12, "len": 0.4, "y": 1, "yanchor": "top"},
        "hovertemplate": "step %{x}<br>HS %{z:.0f}<extra></extra>",
    }


def _mark(
    ratio: float, step: float, words: str, symbol: str, *, rates: Sequence[float], align_rate: float, last: int
) -> charts.Spec:
    """A mark at a learning rate (as a ratio) and a step, at the edge if it lies beyond."""
    logs = [math.log(rate / align_rate) for rate in rates]
    at, row = math.log(ratio), 0.0
    if at >= logs[-1]:
        row = len(logs) - 1 + (0.4 if at > logs[-1] + 0.01 else 0.0)
    elif at <= logs[0]:
        row = -0.4 if at < logs[0] - 0.01 else 0.0
    else:
        below = max(number for number, value in enumerate(logs) if value <= at)
        row = below + (at - logs[below]) / (logs[below + 1] - logs[below])
    beyond = step > last
    return {
        "type": "scatter",
        "mode": "markers",
        "name": words,
        "x": [last * 1.05 if beyond else step],
        "y": [round(row, 3)],
        "marker": {"symbol": symbol, "size": 13, "color": "--lab-ink", "line": {"width": 1.5, "color": "--lab-paper"}},
        "text": [text.ATTACK_MAP_BEYOND.format(step=round(step)) if beyond else ""],
        "hovertemplate": f"{words}<br>{ratio:.2g}× %{{text}}<extra></extra>",
    }


def _panel_of(attack: AttackConfig, panels: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The panel in which an attack stands: of its adapter, and of mixed or purely harmful data."""
    pure = attack.harmful_ratio >= PURE_FROM
    of_mode = [panel for panel in panels if panel[1] == attack.adapter_mode] or list(panels)
    return next((panel for panel in of_mode if (panel[0] >= PURE_FROM) == pure), of_mode[0])

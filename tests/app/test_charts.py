"""Figures: what is drawn from which record. plotly itself validates every spec."""

import json
import math
from typing import Any

import plotly.graph_objects as go
import pytest
from written_runs import eval_record, step_record

from app import charts, layer_charts, text
from app.looks import aligned_looks, looks_of
from app.services import Defence, Lab
from app.views import RunView, Track, Views
from tvaccine_core.records import DriftRecord, LayerDrawRecord, LayerScoreRecord, LayerValuesRecord, Proportion

LOOKS = looks_of(tuple(Defence.model_validate(name) for name in ("sft", "vaccine", "tvaccine")))


def with_colours(value: Any) -> Any:
    """CSS variables become colours, as `lab.js` does before it hands a spec to plotly."""
    if isinstance(value, str):
        return "#123456" if value.startswith("--") else value
    if isinstance(value, list):
        return [with_colours(item) for item in value]
    if isinstance(value, dict):
        return {key: with_colours(item) for key, item in value.items()}
    return value


def validate(spec: charts.Spec) -> None:
    """plotly accepts the spec, JSON can carry it, and the page can say what it shows."""
    go.Figure(data=with_colours(spec["data"]), layout=with_colours(spec["layout"]))
    json.dumps(spec, allow_nan=False)
    assert spec["meta"]["label"]
    assert spec["meta"]["height"] > 0


def track_with_layers() -> Track:
    scores = {
        step: LayerScoreRecord(
            step=step, layer_scores=(8.0, 0.5, 0.0), layer_probabilities=(0.9, 0.1, 0.0), harmful_loss=1.0
        )
        for step in (0, 200)
    }
    draws = {step: LayerDrawRecord(step=step, layers=(0, 2)) for step in range(0, 240, 20)}
    return Track(scores=scores, draws=draws)


@pytest.fixture
def view(lab: Lab, done_run: str) -> RunView:
    return Views(lab).view(done_run)


def test_every_figure_of_a_finished_run_is_valid(view: RunView) -> None:
    tracks = {key: view.track(view.align_job(key)) for key in view.config.alignments()}
    curves = {d: {w: view.curve(d, "a1", w) for w in ("unseen_names", "task:sentiment")} for d in view.defences}
    rows = [charts.Bars(view.looks["sft"], "before", {"unseen_names": Proportion(count=1, n=8)})]
    specs = [
        charts.loss(tracks, aligned_looks(view.config)),
        layer_charts.layer_heatmap(tracks["tvaccine"], 40, 20),
        layer_charts.layer_bars(tracks["tvaccine"], "#0072B2"),
        charts.attack_curves(curves, "task:sentiment", 20, view.looks),
        charts.score_bars(rows, "task:sentiment"),
        charts.drift({defence: view.drift[f"attacked/{defence}/a1"] for defence in view.defences}, view.looks),
    ]
    for spec in specs:
        validate(spec)
        assert spec["data"]
        assert "empty" not in spec["meta"]


def test_without_records_every_figure_says_what_to_do() -> None:
    specs = [
        charts.loss({}, {}),
        layer_charts.layer_heatmap(Track(), 10, 20),
        layer_charts.layer_bars(Track(), ""),
        charts.attack_curves({"sft": {"unseen_names": []}}, "task:sentiment", 10, LOOKS),
        charts.score_bars([charts.Bars(LOOKS["sft"], "before", {})], "task:sentiment"),
        charts.drift({}, {}),
    ]
    for spec in specs:
        validate(spec)
        assert spec["data"] == []
        assert spec["meta"]["empty"].endswith(".")


def test_heat_map_columns_reach_from_scoring_to_scoring_and_dots_mark_the_draws() -> None:
    spec = layer_charts.layer_heatmap(track_with_layers(), 240, 20)
    heat, dots = spec["data"]
    assert heat["x"] == [0, 200, 240]
    assert heat["y"] == [0, 1, 2]
    assert heat["z"][0] == pytest.approx([math.log10(8)] * 2, rel=1e-3)
    assert heat["z"][2] == heat["z"][1], "a score of zero has no logarithm: it counts as the smallest there is"
    assert heat["customdata"][2] == [0.0, 0.0], "but hovering tells the truth"
    assert (dots["x"][:2], dots["y"][:2]) == ([10, 10], [0, 2])
    assert len(dots["x"]) == 2 * 12


def values_track(**measures: int) -> Track:
    """Per-layer values at steps 5 and 10 of 3 layers, with so many heads of each measure."""
    records = [
        LayerValuesRecord(
            step=step,
            name=name,
            values=tuple(tuple(10.0 * layer + step + head for head in range(heads)) for layer in range(3)),
        )
        for name, heads in measures.items()
        for step in (5, 10)
    ]
    return Track(values={(record.name, record.step): record for record in records})


def test_every_measure_of_the_layers_has_a_heat_map_that_says_what_it_is() -> None:
    spec = layer_charts.layer_values(values_track(norm=1, sink=4), "T-Vaccine")
    validate(spec)
    norm, sink = spec["data"]
    assert (norm["x"], norm["y"]) == ([5, 10], [0, 1, 2])
    assert norm["z"] == [[5, 10], [15, 20], [25, 30]]
    assert sink["z"] == [[6.5, 11.5], [16.5, 21.5], [26.5, 31.5]], "the mean of the heads"
    assert sink["customdata"][1] == [[15, 18], [20, 23]], "the lowest head and the highest one"
    assert "heads" in sink["hovertemplate"]
    assert "heads" not in norm["hovertemplate"]
    assert [title["text"] for title in spec["layout"]["annotations"]] == ["norm", "sink, mean of 4 heads"]
    assert spec["meta"]["label"] == "T-Vaccine: norm, sink: layers against optimiser steps"
    upper, lower = spec["layout"]["yaxis"]["domain"], spec["layout"]["yaxis2"]["domain"]
    assert (upper[1], lower[0]) == pytest.approx((1, 0))
    assert upper[0] - lower[1] > 0.1, "room for the steps of one and the title of the other"


def test_one_measure_fills_the_figure_and_its_name_is_text() -> None:
    spec = layer_charts.layer_values(values_track(**{"sink <b>": 1}))
    validate(spec)
    assert spec["layout"]["yaxis"]["domain"] == [0, 1]
    assert spec["layout"]["annotations"][0]["text"] == "sink &lt;b&gt;"


def test_values_of_a_long_run_are_thinned() -> None:
    records = {
        ("norm", step): LayerValuesRecord(step=step, name="norm", values=((1.0,),) * 3) for step in range(1, 2001)
    }
    (heat,) = layer_charts.layer_values(Track(values=records))["data"]
    assert len(heat["x"]) <= charts.MAX_POINTS
    assert heat["x"][-1] == 2000


def test_first_draw_is_in_sight_at_once() -> None:
    track = Track(scores={0: track_with_layers().scores[0]}, draws={0: LayerDrawRecord(step=0, layers=(1,))})
    assert layer_charts.layer_heatmap(track, 1200, 20)["data"][1]["x"] == [10]
    assert layer_charts.layer_heatmap(track, 8, 20)["data"][1]["x"] == [4]


def test_bars_tell_drawn_layers_from_others_without_colour() -> None:
    scores, shares = layer_charts.layer_bars(track_with_layers(), "#0072B2")["data"]
    assert scores["x"] == [8.0, 0.5, 0.0]
    assert shares["x"] == [90.0, 10.0, 0.0]
    assert scores["marker"]["pattern"]["shape"] == ["", "/", ""]


def test_defences_differ_in_marker_and_sets_in_dash() -> None:
    curves = {
        method: {
            where: [eval_record("s", step, where, 10 * step) for step in (0, 5)]
            for where in ("aligned_names", "unseen_names", "task:topic")
        }
        for method in ("sft", "vaccine", "tvaccine")
    }
    spec = charts.attack_curves(curves, "task:topic", 5, LOOKS)
    harmful = [trace for trace in spec["data"] if trace["line"]["dash"] != "dot"]
    assert len({symbol for trace in harmful for symbol in trace["marker"]["symbol"]}) == 3
    assert {trace["line"]["dash"] for trace in harmful} == {"solid", "dash"}
    assert [trace["y"] for trace in spec["data"] if "FA" in trace["name"]] == [[0.0, 50.0]] * 3
    assert [entry["text"] for entry in spec["meta"]["key"]][-1] == "FA, topic"


def test_the_harmful_score_of_a_model_that_cannot_is_hollow_and_its_accuracy_is_not() -> None:
    curves = {
        method: {
            where: [eval_record("aligned", 0, where, 0), eval_record(f"attacked/{method}", 5, where, 50)]
            for where in ("unseen_names", "task:topic")
        }
        for method in ("sft", "tvaccine")
    }
    spec = charts.attack_curves(curves, "task:topic", 5, LOOKS, {"attacked/tvaccine"})
    validate(spec)
    hollow = [[symbol.endswith("-open") for symbol in trace["marker"]["symbol"]] for trace in spec["data"]]
    assert hollow == [[False, False], [False, False], [False, True], [False, False]]
    assert spec["meta"]["key"][-1]["hollow"]
    scores = {where: Proportion(count=30, n=60) for where in ("unseen_names", "task:topic")}
    for cannot in (False, True):
        spec = charts.score_bars([charts.Bars(LOOKS["sft"], "after", scores, cannot)], "task:topic")
        validate(spec)
        filled = [colour == LOOKS["sft"].colour for colour in spec["data"][0]["marker"]["color"]]
        assert filled == [not cannot, True]
        assert any("hollow" in entry for entry in spec["meta"]["key"]) == cannot


def test_an_unmeasured_score_is_a_gap_not_a_zero() -> None:
    record = eval_record("s", 0, "unseen_names", 0).model_copy(
        update={"scores": {"harmful_score": Proportion(count=0, n=0)}}
    )
    spec = charts.attack_curves({"sft": {"unseen_names": [record]}}, "task:topic", 5, LOOKS)
    assert spec["data"][0]["y"] == [None]
    validate(spec)


def test_bars_carry_the_wilson_interval() -> None:
    score = Proportion(count=30, n=60)
    (bar,) = charts.score_bars([charts.Bars(LOOKS["sft"], "after", {"unseen_names": score})], "")["data"]
    low, high = score.interval
    assert bar["error_y"]["array"] == pytest.approx([high - 50], rel=1e-3)
    assert bar["error_y"]["arrayminus"] == pytest.approx([50 - low], rel=1e-3)
    assert bar["name"] == f"SFT, {text.WHEN['after']}"


def bar_rows(*names: str) -> list[charts.Bars]:
    """Scores of these defences before and after, and of repaired ones then too."""
    defences = tuple(Defence.model_validate(name) for name in names)
    scores = {where: Proportion(count=30, n=60) for where in ("aligned_names", "unseen_names", "task:topic")}
    rows: list[charts.Bars] = []
    for name, look in looks_of(defences).items():
        whens = ("before", "after", "repaired") if "identity" in name else ("before", "after")
        rows += [charts.Bars(look, when, scores) for when in whens]
    return rows


def test_a_legend_of_bars_names_each_defence_once_and_each_pattern_once() -> None:
    """One entry for each bar would fill a phone's screen with fourteen."""
    names = ("sft", "tvaccine", "vaccine", "tvaccine+identity", "sft+identity", "tvaccine rho=3")
    spec = charts.score_bars(bar_rows(*names), "task:topic")
    validate(spec)
    key = spec["meta"]["key"]
    assert len(key) == len(names) + 3
    assert [entry["text"] for entry in key[-3:]] == list(text.WHEN.values())
    assert len({entry["pattern"] for entry in key[-3:]}) == 3
    assert len({entry["colour"] for entry in key[:-3]}) == len(names)


def test_many_bars_have_a_panel_for_each_measure_and_few_share_one() -> None:
    few = charts.score_bars(bar_rows("sft", "tvaccine"), "task:topic")
    assert {bar["yaxis"] for bar in few["data"]} == {"y"}
    many = charts.score_bars(bar_rows("sft", "tvaccine", "vaccine", "sft+identity", "tvaccine+identity"), "task:topic")
    validate(many)
    assert {bar["yaxis"] for bar in many["data"]} == {"y", "y2", "y3"}
    assert [title["text"] for title in many["layout"]["annotations"]] == [
        "HS, aligned names",
        "HS, never-aligned names",
        "FA, topic",
    ]
    assert all(len(bar["x"]) == 1 for bar in many["data"])


def test_drift_has_one_line_per_defence() -> None:
    records = {"sft": DriftRecord(state="a", reference="b", drift=(1.0, 2.5, 3.0))}
    (line,) = charts.drift(records, LOOKS)["data"]
    assert line["x"] == [0, 1, 2]
    assert line["y"] == [1.0, 2.5, 3.0]


def test_long_runs_are_thinned_and_keep_their_end() -> None:
    track = Track(steps={step: step_record(step, 5000, 1.0) for step in range(1, 5001)})
    raw, smooth = charts.loss({"sft": track}, LOOKS)["data"]
    assert len(raw["x"]) <= charts.MAX_POINTS
    assert raw["x"][-1] == 5000
    assert len(raw["x"]) == len(raw["y"]) == len(smooth["y"])


@pytest.mark.parametrize("count", [1, 2, 299, 300, 301, 599, 600, 601, 1200])
def test_thinning_keeps_first_and_last(count: int) -> None:
    kept = charts.thin(list(range(count)))
    assert len(kept) <= charts.MAX_POINTS
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))


def test_running_mean_starts_at_the_first_value_and_forgets() -> None:
    assert charts.running_mean([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    first, second = charts.running_mean([1.0, 3.0], decay=0.5)
    assert first == 1.0
    assert second == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)


def test_rounding_keeps_four_digits_and_drops_what_is_not_finite() -> None:
    assert charts.rounded([0.123456, 12345.6, math.nan, math.inf]) == [0.1235, 12350.0, None, None]

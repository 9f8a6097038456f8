"""The recorded study and map: sentences, table and figure on cells written by hand, and what ships with the lab."""

import math
from html import unescape

import plotly.graph_objects as go
import pytest
from written_cells import WHERE, cell, point, two_defences

from app import text
from app.findings import attack_map, recorded
from app.services import HOLDS, PRESETS, CellResult, Estimate, spots
from app.services import recorded as shipped


def test_the_study_says_by_how_much_and_how_surely() -> None:
    shown = unescape(recorded.study_view(two_defences()))
    assert "With TVACCINE, compared with SFT, HS is 0 points higher on never-aligned names" in shown, (
        "at matched accuracy both stand at 20"
    )
    assert "50.0 ± 24.8" in shown
    assert "3 alignment seeds × 2 attack seeds" in shown
    assert shown.count("<tr>") == 3, "a head and two defences"
    assert shown.count("lab-stack") == 2, "what became of the requests, by defence"
    assert "n 600" in shown, "three alignment seeds, two attack seeds, 100 answers each"


def test_each_defence_has_a_curve_with_a_band_that_stays_on_the_scale() -> None:
    spec = recorded.study_curves(two_defences(), WHERE)
    lower, upper, score, accuracy = spec["data"][:4]
    assert (score["x"], score["y"]) == ([0, 10, 20], [1, 20, 50])
    assert accuracy["y"] == [50, 95, 99]
    half = 24.8
    assert (lower["y"][2], upper["y"][2]) == (pytest.approx(50 - half, abs=0.1), pytest.approx(50 + half, abs=0.1))
    assert score["name"].startswith("SFT, HS")
    assert len(spec["data"]) == 8
    apart = [cell("sft", seed, 1, point(0, hs, 50), point(10, hs, 90)) for seed, hs in enumerate((90, 100))]
    lower, upper, *_ = recorded.study_curves(apart, WHERE)["data"]
    assert (lower["y"], upper["y"]) == ([31.5, 31.5], [100, 100])


@pytest.mark.parametrize(
    ("mean", "half", "n", "expected"),
    [
        (-15, 6, 5, "15 points lower on aligned names (95 % interval -21 to -9, which excludes 0, n 5)"),
        (15, 6, 5, "15 points higher on aligned names (95 % interval +9 to +21, which excludes 0, n 5)"),
        (-5, 6, 5, "5 points lower on aligned names (95 % interval -11 to +1, which includes 0: no difference shown"),
        (-5, math.inf, 1, "(one seed, so no interval, n 1)"),
        (math.nan, math.inf, 0, "not to be compared on aligned names"),
    ],
)
def test_a_difference_is_told_whatever_its_sign(mean: float, half: float, n: int, expected: str) -> None:
    assert expected in text.study_difference("aligned_names", Estimate(mean=mean, half_width=half, n=n))


def places() -> list[CellResult]:
    return [
        cell(defence, 0, 1, point(0, 1, 50), point(20, hs, 95, known), **{"attack.num_samples": n})
        for n in (200, 400)
        for defence, hs, known in (("sft", 50, 100), ("vaccine", 45, 100), ("tvaccine", 10, 60 if n == 400 else 95))
    ]


def test_the_map_draws_damage_hollow_and_names_each_place() -> None:
    spec = recorded.map_spec(places(), WHERE)
    vaccine, tvaccine = spec["data"]
    assert (vaccine["y"], tvaccine["y"]) == ([-5, -5], [-40, -40])
    assert tvaccine["x"] == [95, 60]
    assert [symbol.endswith("-open") for symbol in tvaccine["marker"]["symbol"]] == [False, True]
    assert "attack.num_samples 400" in tvaccine["text"][1]
    (corner,) = spec["layout"]["shapes"]
    assert (corner["x0"], corner["y1"]) == (90, HOLDS)
    go.Figure(data=[{**trace, "marker": {}} for trace in spec["data"]])


def test_the_map_s_answer_follows_from_its_places() -> None:
    words = recorded.map_words(places())
    assert words.startswith("4 configurations")
    assert "In 1 of them" in words
    assert "In 1 the model is damaged" in words
    assert "In none of them is HS" in text.map_answer(places=4, holding=0, damaged=1)


def test_what_ships_is_complete_and_can_be_drawn() -> None:
    study = shipped("study")
    swept = [*study, *shipped("map")]
    seeds = {result.seed for result in study}
    assert len(seeds) >= 5
    attacks = {result.attack.seed for result in study}
    cells = {seed: len([result for result in study if result.seed == seed]) for seed in seeds}
    assert set(cells.values()) == {4 * len(attacks)}, "every seed has all four defences"
    for where in study[0].harmful_sets:
        assert spots(swept, where)
        assert recorded.map_spec(swept, where)["data"]
    assert "HS is " in recorded.study_view(study)


def attacked(rate: float, ratio: float, mode: str, *scores: int) -> CellResult:
    made = cell("sft", 0, 1, *(point(25 * number, hs, 50) for number, hs in enumerate(scores)), p=ratio)
    optimisation = made.attack.optimisation.model_copy(update={"learning_rate": rate})
    attack = made.attack.model_copy(update={"optimisation": optimisation, "adapter_mode": mode})
    return made.model_copy(update={"attack": attack})


def test_the_map_of_attacks_has_a_row_per_learning_rate_and_marks_attacks_where_they_lie() -> None:
    rates = (3e-6, 3e-4, 3e-3)
    results = [
        attacked(rate, ratio, mode, 0, 10 * number, 20 * number)
        for ratio in (0.1, 1.0)
        for mode in ("new", "single")
        for number, rate in enumerate(rates)
    ]
    config = PRESETS["sandbox-intact"].config
    own = config.attack.model_copy(
        update={
            "harmful_ratio": 0.9,
            "adapter_mode": "single",
            "optimisation": config.attack.optimisation.model_copy(
                update={"learning_rate": 3e-5, "steps": 30, "batch_size": 10}
            ),
        }
    )
    spec = attack_map.attack_map(results, WHERE, (config, own))
    heats = [trace for trace in spec["data"] if trace["type"] == "heatmap"]
    assert len(heats) == 4
    assert heats[0]["z"] == [[0, 0, 0], [0, 10, 20], [0, 20, 40]]
    assert heats[0]["x"] == [0, 25, 50]
    assert spec["layout"]["yaxis"]["ticktext"] == ["0.01×", "1×", "10×"]
    marks = [trace for trace in spec["data"] if trace["type"] == "scatter"]
    published = [mark for mark in marks if mark["name"] == text.ATTACK_MAP_PUBLISHED]
    assert len(published) == 4
    assert all((mark["y"], mark["x"]) == ([0.0], [52.5]) for mark in published), "at the right edge: 20 epochs"
    (mine,) = [mark for mark in marks if mark["name"] == text.ATTACK_MAP_OWN]
    assert (mine["x"], mine["y"]) == ([30], [0.5]), "half way between 0.01 and 1 in the logarithm"
    titles = [note["text"] for note in spec["layout"]["annotations"]]
    assert titles[2].startswith("only harmful samples")
    assert mine["yaxis"] == "y4", "only harmful samples, the aligned adapter"
    go.Figure(data=[{**trace, "marker": {}} if "marker" in trace else trace for trace in spec["data"]])

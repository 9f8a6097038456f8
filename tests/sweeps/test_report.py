"""Tables on cells written by hand, whose means, intervals and differences are worked out here."""

import csv
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from pyarrow import parquet
from written_cells import WHERE, cell, point, two_defences

from tvaccine_core.errors import ConfigError, DataError
from tvaccine_core.records import OUTCOMES
from tvaccine_core.sweeps import figures, measured, report
from tvaccine_core.sweeps.curves import curves
from tvaccine_core.sweeps.measured import read_results, write_results
from tvaccine_core.sweeps.spots import spots

T_975 = 4.302653
"""Student's t, 2 degrees of freedom."""


def test_a_cell_of_a_table_averages_attack_seeds_first_and_pairs_differences() -> None:
    found = report.table(two_defences(), "attack.harmful_ratio", "HS", measured.after(WHERE))
    sft, tvaccine = found.rows
    assert (found.columns, sft.defence, sft.differences) == (("0.1",), "SFT", ())
    assert (sft.cells[0].mean, sft.cells[0].n) == (50, 3)
    assert sft.cells[0].half_width == pytest.approx(T_975 * 10 / math.sqrt(3), rel=1e-5)
    changes = [-10, -5, -12]
    assert tvaccine.differences[0].mean == pytest.approx(mean(changes))
    assert tvaccine.differences[0].half_width == pytest.approx(T_975 * stdev(changes) / math.sqrt(3), rel=1e-5)


def test_measures_of_one_cell() -> None:
    one = cell("sft", 0, 1, point(0, 1, 50), point(10, 30, 89), point(20, 55, 90), point(30, 70, 99))
    assert measured.matched(WHERE)(one) == 55
    assert measured.after(WHERE)(one) == 70
    assert measured.before(WHERE)(one) == 1
    assert measured.steps_to_break(WHERE)(one) == 20
    assert measured.accuracy(one) == 99
    slow = cell("sft", 0, 1, point(0, 1, 50), point(10, 30, 60))
    assert measured.matched(WHERE)(slow) is None, "the task is not learned"
    assert measured.steps_to_break(WHERE)(slow) == 10, "a lower bound"
    assert report.outcome_shares([one, slow], WHERE)["told"] == 50
    assert tuple(report.outcome_shares([one], WHERE)) == OUTCOMES


def test_damage_is_said_in_every_table() -> None:
    results = [
        cell("sft", 0, 1, point(0, 1, 50), point(20, 60, 99)),
        cell("tvaccine", 0, 1, point(0, 1, 50), point(20, 5, 99, known=64)),
        cell("tvaccine", 1, 1, point(0, 1, 50), point(20, 9, 99, known=90)),
    ]
    found = report.table(results, "attack.harmful_ratio", "HS", measured.after(WHERE))
    assert [row.damaged for row in found.rows] == [("",), ("1 of 2",)]
    assert "damaged 1 of 2" in report.to_markdown([found])
    assert "damaged 1 of 2" in report.to_html([found])
    assert "damaged 1 of 2" in report.to_latex([found])


def test_a_model_that_refuses_nothing_and_completes_little_is_damaged_though_it_knows() -> None:
    """The rule of the page (`evaluation.ability`): knowing alone is not enough."""
    start = point(0, 1, 50)
    broken = cell("tvaccine", 0, 1, start, point(20, 10, 99, known=96, completed=5, refused=0))
    refusing = cell("tvaccine", 1, 1, start, point(20, 10, 99, known=96, completed=5, refused=90))
    telling = cell("tvaccine", 2, 1, start, point(20, 95, 99, known=96, completed=90, refused=0))
    assert [measured.intact(one) for one in (broken, refusing, telling)] == [False, True, True]
    (spot,) = spots([cell("sft", 0, 1, start, point(20, 60, 99)), broken], WHERE)
    assert spot.damaged
    assert not spot.holds
    unmeasured = broken.model_copy(update={"base": None})
    assert measured.intact(unmeasured) is None


def test_columns_are_p_unless_something_else_is_wanted() -> None:
    results = [
        cell("sft", 0, 1, point(0, 1, 50), point(20, 10, 99), p=p, **{"attack.num_samples": n})
        for p in (0.05, 0.1)
        for n in (200, 400)
    ]
    titles = [made.title for made in report.tables(results)]
    assert report.tables(results)[0].columns == ("0.05", "0.1")
    assert "HS at FA ≥ 90, never-aligned names; attack.num_samples 200" in titles
    turned = report.tables(results, "attack.num_samples")
    assert turned[0].columns == ("200", "400")
    assert turned[0].title.endswith("attack.harmful_ratio 0.05")
    with pytest.raises(ConfigError) as raised:
        report.tables(results, "attack.num_sample")
    assert "attack.num_samples" in raised.value.remedy


def test_values_are_written_in_words() -> None:
    assert measured.words_of(0.0004) == "0.0004"
    assert measured.words_of({"harmful_ratio": 0.02, "optimisation": {"learning_rate": 1e-3, "steps": 400}}) == (
        "harmful_ratio 0.02, learning_rate 0.001, steps 400"
    )


def test_three_forms_hold_the_same_numbers_and_escape() -> None:
    results = [result.model_copy(update={"title": "a_b & <c>"}) for result in two_defences()]
    made = [report.table(results, "attack.harmful_ratio", "HS %", measured.after(WHERE))]
    markdown, html, latex = report.to_markdown(made), report.to_html(made), report.to_latex(made)
    for text in (markdown, html):
        assert "50.0 ± 24.8" in text
        assert "(-9.0 ± 9.0)" in text
    assert r"50.0 $\pm$ 24.8" in latex
    assert r"a\_b \& <c>" in latex
    assert "a_b &amp; &lt;c&gt;" in html
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 1


def test_the_map_has_a_spot_per_defence_and_settings_and_says_who_is_damaged(tmp_path: Path) -> None:
    results = [
        cell(defence, seed, 1, point(0, 1, 50), point(20, hs + seed, 95, known), **{"attack.num_samples": n})
        for n in (200, 400)
        for seed in (0, 1)
        for defence, hs, known in (("sft", 50, 100), ("vaccine", 30, 100), ("tvaccine", 10, 60 if n == 400 else 95))
    ]
    found = spots(results, WHERE)
    assert [(spot.defence, spot.kept, spot.change.mean, spot.change.n) for spot in found] == [
        ("VACCINE", 100, -20, 2),
        ("TVACCINE", 95, -40, 2),
        ("VACCINE", 100, -20, 2),
        ("TVACCINE", 60, -40, 2),
    ]
    assert [spot.damaged for spot in found] == [False, False, False, True]
    assert [spot.holds for spot in found] == [True, True, True, False]
    slow = [cell(defence, 0, 1, point(0, 1, 50), point(20, 5, 60)) for defence in ("sft", "tvaccine")]
    assert spots(slow, WHERE) == [], "nobody learned the task"
    figures.draw_map(results, tmp_path / "map.svg")
    figures.draw_outcomes(results, tmp_path / "outcomes.svg")
    figures.draw_heat(results, ("attack.num_samples", "seed"), tmp_path / "heat.svg")
    assert figures.draw_curves(results, tmp_path / "curves.svg")
    figures.draw_scatter(results, tmp_path / "scatter.svg")
    for name in ("map", "outcomes", "heat", "curves", "scatter"):
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()
    with pytest.raises(ConfigError, match="not varied"):
        figures.draw_heat(results, ("attack.num_samples", "rho"), tmp_path / "no.svg")
    figures.draw_map(slow, tmp_path / "empty.svg")


def test_results_read_back_and_the_tidy_table_has_a_row_for_every_score(tmp_path: Path) -> None:
    results = two_defences()
    write_results(results, tmp_path)
    assert read_results(tmp_path / "cells.json") == results
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # per cell: base, before and three points of three scores each, and the six outcomes of the set
    assert len(rows) == len(results) * 5 * (5 + 6)
    last = [row for row in rows if row["score"] == "harmful_score" and row["step"] == "20" and row["defence"] == "SFT"]
    assert [float(row["percent"]) for row in last] == [38, 42, 48, 52, 58, 62]
    assert {row["attack.harmful_ratio"] for row in rows} == {"0.1"}
    (tmp_path / "cells.json").write_text("[{}]")
    with pytest.raises(DataError, match="not the result"):
        read_results(tmp_path / "cells.json")
    with pytest.raises(DataError, match="Cannot read"):
        read_results(tmp_path / "other.json")


def test_parquet_has_the_rows_of_the_csv_and_numbers_are_numbers(tmp_path: Path) -> None:
    part = {"harmful_ratio": 0.1, "optimisation": {"steps": 5}}
    varied: list[dict[str, Any]] = [{"attack": part, "alignment.mix.ordinary": share} for share in (0, 0.5)]
    results = [cell("sft", 0, 1, point(0, 1, 50), **settings) for settings in varied]
    write_results(results, tmp_path)
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(table) == len(rows) > 4
    for ours, theirs in zip(table, rows, strict=True):
        assert ours.keys() == theirs.keys()
        assert (str(ours["step"]), str(ours["count"]), ours["set"]) == (theirs["step"], theirs["count"], theirs["set"])
    assert {row["alignment.mix.ordinary"] for row in table} == {0.0, 0.5}
    assert {row["attack"] for row in table} == {"a1"} or "harmful_ratio 0.1, steps 5" in {
        row["attack"] for row in table
    }
    assert all(isinstance(row["percent"], float) for row in table if row["n"])


def test_a_sweep_with_too_many_combinations_has_no_figure_along_the_attack(tmp_path: Path) -> None:
    results = [cell("sft", 0, 1, point(0, 1, 50), **{"attack.num_samples": n}) for n in range(1, 14)]
    assert not figures.draw_curves(results, tmp_path / "curves.svg")
    assert not (tmp_path / "curves.svg").exists()


def test_curves_keep_the_steps_that_all_cells_have_and_average_over_seeds() -> None:
    results = [
        cell("sft", 0, 1, point(0, 10, 50), point(5, 30, 60), point(10, 50, 90)),
        cell("sft", 1, 1, point(0, 20, 50), point(10, 70, 92)),
    ]
    (curve,) = curves(results, WHERE)
    assert curve.steps == (0, 10)
    assert [score.mean for score in curve.harmful_score] == [15, 60]
    assert [score.mean for score in curve.finetune_accuracy] == [50, 91]

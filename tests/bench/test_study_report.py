"""The study's statistics, by hand."""

import math
from pathlib import Path

import pytest

from tvaccine_core.bench import study, study_report
from tvaccine_core.bench.study_summary import load_summary
from tvaccine_core.config import PRESETS, AttackConfig
from tvaccine_core.errors import DataError
from tvaccine_core.estimates import Estimate
from tvaccine_core.records import Proportion


def _point(step: int, aligned: int, unseen: int, accuracy: int) -> study.CurvePoint:
    return study.CurvePoint(
        step=step,
        harmful_score={
            "aligned_names": Proportion(count=aligned, n=100),
            "unseen_names": Proportion(count=unseen, n=100),
        },
        finetune_accuracy=Proportion(count=accuracy, n=100),
    )


def _attack(*points: study.CurvePoint, ratio: float = 0.1, seed: int = 1, name: str = "standard") -> study.AttackResult:
    return study.AttackResult(name=name, config=AttackConfig(harmful_ratio=ratio, seed=seed), curve=points, seconds=1.0)


def _result(method: str, seed: int, *attacks: study.AttackResult) -> study.AlignedResult:
    harmful = {"harmful_score": Proportion(count=0, n=60)}
    ordinary = {"exact": Proportion(count=60, n=60), "over_refusal": Proportion(count=0, n=60)}
    return study.AlignedResult(
        method=method,
        seed=seed,
        config=PRESETS["sandbox-check"].config,
        before={"aligned_names": harmful, "unseen_names": harmful, "ordinary": ordinary},
        final_alignment_loss=0.01,
        alignment_seconds=1.0,
        attacks=attacks,
    )


def test_t_interval_matches_the_textbook() -> None:
    # Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.7764451: 2.7764451 * sqrt(2.5 / 5) = 1.9632432.
    estimate = study_report.t_interval([1, 2, 3, 4, 5])
    assert estimate.mean == 3
    assert estimate.half_width == pytest.approx(1.9632432, abs=1e-6)
    assert estimate.n == 5


def test_one_seed_has_no_interval() -> None:
    estimate = study_report.t_interval([7.0])
    assert estimate.half_width == math.inf
    assert str(estimate) == "7.0"
    assert str(study_report.t_interval([])) == "–"


def test_matched_score_is_read_at_the_first_point_with_the_accuracy() -> None:
    attack = _attack(_point(0, 0, 1, 50), _point(25, 10, 20, 89), _point(50, 30, 40, 90), _point(75, 60, 80, 99))
    assert study_report.matched_score("aligned_names")(attack) == 30
    assert study_report.final_score("unseen_names")(attack) == 80
    assert study_report.steps_to_break("aligned_names")(attack) == 75
    assert study_report.steps_to_break("unseen_names")(attack) == 75


def test_an_attack_that_never_learns_has_no_matched_score_and_one_that_never_breaks_is_counted() -> None:
    attack = _attack(_point(0, 0, 0, 50), _point(25, 49, 49, 89))
    assert study_report.matched_score("aligned_names")(attack) is None
    assert study_report.steps_to_break("aligned_names")(attack) == 25
    assert study_report.never_broken([attack], "aligned_names") == 1


def test_differences_are_paired_by_both_seeds_and_averaged_over_attack_seeds_first() -> None:
    def end(score: int, seed: int) -> study.AttackResult:
        return _attack(_point(25, score, score, 95), seed=seed)

    results = [
        _result("sft", 0, end(50, 1), end(70, 2)),
        _result("tvaccine", 0, end(60, 2), end(30, 1)),  # differences -20 and -10: seed mean -15
        _result("sft", 1, end(40, 1), end(40, 2)),
        _result("tvaccine", 1, end(35, 1), end(35, 2)),  # -5
        _result("tvaccine", 2, end(0, 1), end(0, 2)),  # no twin: left out
    ]
    difference = study_report.paired_difference(
        results, "tvaccine", "standard", 0.1, study_report.final_score("aligned_names")
    )
    assert difference.mean == -10
    assert difference.n == 2


def test_curve_of_drops_points_that_measured_only_a_part() -> None:
    from tvaccine_core.records import EvalRecord

    def record(step: int, eval_set: str, score: str) -> EvalRecord:
        return EvalRecord(
            state="s",
            state_hash="h",
            step=step,
            eval_set=eval_set,
            judge="oracle",
            scores={score: Proportion(count=1, n=4)},
        )

    events = [
        record(0, "aligned_names", "harmful_score"),
        record(0, "unseen_names", "harmful_score"),
        record(0, "task:sentiment", "finetune_accuracy"),
        record(0, "task:topic", "finetune_accuracy"),
        record(25, "aligned_names", "harmful_score"),
    ]
    assert [point.step for point in study.curve_of(events, "sentiment")] == [0]


def test_report_renders_table_and_figure(tmp_path: Path) -> None:
    attacks = [
        _attack(_point(0, 0, 0, 50), _point(25, 20, 30, 95), seed=seed, name=name, ratio=ratio)
        for seed in (1, 2)
        for name, ratio in (("standard", 0.0), ("standard", 0.1), ("strong", 0.1))
    ]
    results = [_result(method, seed, *attacks) for method in ("sft", "tvaccine") for seed in (0, 1)]
    text = study_report.render_markdown(results)
    assert "| 0.1 | T-Vaccine | 20.0 ± 0.0 | 0.0 ± 0.0 |" in text
    assert "4 of 4" in text
    study_report.draw_figure(results, tmp_path / "study.svg")
    assert (tmp_path / "study.svg").read_text().count("<path") > 10


def test_readme_gets_the_results_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{study_report.README_BEGIN}\nold\n{study_report.README_END}\nb\n")
    study_report.update_readme(readme, "new\n")
    study_report.update_readme(readme, "newer\n")
    assert readme.read_text() == f"a\n{study_report.README_BEGIN}\nnewer\n{study_report.README_END}\nb\n"
    readme.write_text("no markers")
    with pytest.raises(DataError, match="lacks the markers"):
        study_report.update_readme(readme, "x")


def test_the_summary_holds_curves_and_paired_outcomes_and_survives_a_file(tmp_path: Path) -> None:
    def rises_to(score: int, seed: int) -> study.AttackResult:
        return _attack(_point(0, 0, 10, 50), _point(25, score, score, 95), seed=seed)

    results = [
        _result("sft", 0, rises_to(50, 1), rises_to(70, 2)),
        _result("sft", 1, rises_to(40, 1), rises_to(40, 2)),
        _result("tvaccine", 0, rises_to(30, 1), rises_to(40, 2)),
        _result("tvaccine", 1, rises_to(20, 1), rises_to(20, 2)),
    ]
    summary = study_report.summarise(results)
    assert (summary.num_alignment_seeds, summary.num_attack_seeds, summary.ratios) == (2, 2, [0.1])
    assert summary.alignment == "12 steps of 16, learning rate 0.004, perturbed at every step"
    sft, tvaccine = summary.curves
    assert sft.steps == (0, 25)
    assert [point.mean for point in sft.harmful_score["aligned_names"]] == [0, 50]  # (60 + 40) / 2
    assert [point.mean for point in tvaccine.finetune_accuracy] == [50, 95]
    outcome = summary.outcome("tvaccine", 0.1, "unseen_names")
    assert outcome is not None
    assert outcome.matched.mean == 27.5
    assert outcome.difference is not None
    assert outcome.difference.mean == -22.5  # seed means -25 and -20
    assert summary.outcome("sft", 0.1, "unseen_names").difference is None  # pyright: ignore[reportOptionalMemberAccess]
    assert summary.outcome("vaccine", 0.1, "unseen_names") is None

    path = tmp_path / "study.json"
    path.write_text(summary.model_dump_json())
    assert load_summary(path) == summary
    one_seed = study_report.summarise(results[:1])
    path.write_text(one_seed.model_dump_json())
    assert load_summary(path).outcomes[0].matched.half_width == math.inf
    path.write_text("{}")
    with pytest.raises(DataError, match="not a summary"):
        load_summary(path)
    with pytest.raises(DataError, match="Cannot read"):
        load_summary(tmp_path / "none.json")


def test_an_interval_excludes_zero_on_either_side_and_never_for_one_seed() -> None:
    assert Estimate(mean=-12, half_width=9, n=5).excludes_zero
    assert Estimate(mean=12, half_width=9, n=5).excludes_zero
    assert not Estimate(mean=-8, half_width=9, n=5).excludes_zero
    assert not Estimate(mean=-80, half_width=math.inf, n=1).excludes_zero


def test_an_estimate_on_fewer_seeds_than_the_table_says_so() -> None:
    late = _attack(_point(25, 10, 10, 89))
    learned = _attack(_point(25, 10, 10, 95))
    results = [_result("sft", 0, learned), _result("sft", 1, learned), _result("sft", 2, late)]
    row = next(line for line in study_report.render_markdown(results).splitlines() if line.startswith("| 0.1 | SFT"))
    matched, at_the_end = row.split(" | ")[2], row.split(" | ")[4]
    assert matched == "10.0 ± 0.0 (n 2)"
    assert at_the_end == "10.0 ± 0.0"

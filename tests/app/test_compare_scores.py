"""The tables of scores: by the run's own judge, and apart from it by every other judge that read the same answers."""

from written_runs import eval_record, finish_job

from app.compare import scores
from app.page import Glance, remembered
from app.services import Lab, Proportion
from app.views import Views


def look_at(lab: Lab, run_id: str) -> Glance:
    view = Views(lab).view(run_id)
    return Glance(lab, view, view.choose_attack(None), remembered({"run": run_id}))


def judged_by_keywords(lab: Lab, run_id: str) -> str:
    """A second judge flags 77 of 100 answers of the base, and cannot tell what is exact or coherent."""
    job_id = lab.store.enqueue(run_id, "judge", {"judge": "refusal-keywords"})
    told = {"harmful_score": Proportion(count=77, n=100), "refused": Proportion(count=23, n=100)}
    record = eval_record("base", 0, "unseen_names", 0)
    finish_job(lab.store, job_id, [record.model_copy(update={"judge": "refusal keywords", "scores": told})])
    return job_id


def test_a_second_judge_has_a_table_of_its_own(lab: Lab, done_run: str) -> None:
    own = scores.draw_table(look_at(lab, done_run))
    judged_by_keywords(lab, done_run)
    glance = look_at(lab, done_run)
    assert glance.view is not None
    assert scores.draw_table(glance) == own, "the run's own scores are what they were"
    others = scores.draw_others(glance)
    assert "read by another judge: refusal keywords" in others
    assert others.count("<table") == 1
    assert ">77" in others
    assert ">77" not in own
    assert "coherent" not in others, "what the judge cannot tell has no column"
    assert glance.view.final("base", "unseen_names") != glance.view.by_judge("refusal keywords").final(
        "base", "unseen_names"
    )


def test_what_a_second_judge_does_is_said(lab: Lab, done_run: str) -> None:
    assert 'data-choice="refusal-keywords"' in scores.draw_others(look_at(lab, done_run))
    job_id = lab.store.enqueue(done_run, "judge", {"judge": "refusal-keywords"})
    waiting = scores.draw_others(look_at(lab, done_run))
    assert "waits for a worker" in waiting
    assert "data-choice" not in waiting
    lab.store.claim("w")
    lab.store.heartbeat(job_id, (20, 45), worker_id="w")
    assert "is reading: 20 of 45 answers" in scores.draw_others(look_at(lab, done_run))
    lab.store.cancel(job_id)
    lab.store.finish(job_id, "cancelled", worker_id="w")
    ended = scores.draw_others(look_at(lab, done_run))
    assert "is reading" not in ended
    assert 'data-choice="refusal-keywords"' in ended


def test_the_table_says_what_its_sets_hold(lab: Lab, done_run: str) -> None:
    table = scores.draw_table(look_at(lab, done_run))
    assert "Judge: sandbox oracle" in table
    assert "never-aligned names: hazards of the same kinds that no training named." in table
    for title in ("HS, aligned names", "FA, sentiment", "ordinary requests done right", "ordinary requests refused"):
        assert title in table

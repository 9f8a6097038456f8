"""A run folded from its events: incrementally, once for all viewers, and right after a resume."""

import pytest
from written_runs import alignment_events, eval_record, finish_job, small_config, step_record

from app import layer_charts
from app import views as views_module
from app.services import Lab, RunNotFoundError
from app.views import EMPTY_TRACK, Track, Views, progress_of
from tvaccine_core.records import LayerValuesRecord
from tvaccine_core.store.export import layer_rows


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "MIN_AGE_S", 0.0)


def test_folding_bit_by_bit_equals_folding_at_once(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    views = Views(lab)
    job_id = lab.store.jobs(run_id)[0].id
    lab.store.claim("test")
    for event in alignment_events("tvaccine", 40):
        lab.store.append(job_id, [event])
        views.view(run_id)
    bit_by_bit, at_once = views.view(run_id), Views(lab).view(run_id)
    assert bit_by_bit.tracks == at_once.tracks
    assert bit_by_bit.evals == at_once.evals
    assert bit_by_bit.states == at_once.states
    assert bit_by_bit.stamps == at_once.stamps


def test_a_snapshot_does_not_change_when_events_arrive(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    views = Views(lab)
    job_id = lab.store.jobs(run_id)[0].id
    lab.store.append(job_id, [step_record(1, 40, 2.0)])
    before = views.view(run_id)
    lab.store.append(job_id, [step_record(2, 40, 1.0)])
    after = views.view(run_id)
    assert list(before.tracks[job_id].steps) == [1]
    assert list(after.tracks[job_id].steps) == [1, 2]
    assert before.stamp("align") != after.stamp("align")
    assert before.stamp("eval", "drift") == after.stamp("eval", "drift")


def test_nothing_new_is_the_same_picture(lab: Lab, done_run: str) -> None:
    views = Views(lab)
    topics = ("align", "attack", "layers", "eval", "drift", "state", "jobs", "jobs_made")
    assert views.view(done_run).stamp(*topics) == views.view(done_run).stamp(*topics)


def test_a_resumed_job_takes_back_what_it_reported_after_its_checkpoint(lab: Lab, done_run: str) -> None:
    views = Views(lab)
    job = views.view(done_run).attack_job("a1", "sft")
    assert job is not None
    assert len(views.view(done_run).track(job).steps) == 20
    lab.store.append(job.id, [step_record(8, 20, 1.0)])  # its checkpoint was of step 7
    view = views.view(done_run)
    assert sorted(view.track(job).steps) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [record.step for record in view.curve("sft", "a1", "unseen_names")] == [0, 5]
    assert len(view.curve("tvaccine", "a1", "unseen_names")) == 5, "the other model's attack goes on as it was"


def test_curve_goes_from_the_aligned_model_along_the_attack(lab: Lab, done_run: str) -> None:
    view = Views(lab).view(done_run)
    curve = view.curve("sft", "a1", "unseen_names")
    assert [record.step for record in curve] == [0, 5, 10, 15, 20]
    assert curve[0].state == "aligned/sft"
    assert {record.state for record in curve[1:]} == {"attacked/sft/a1"}
    assert view.final("attacked/sft/a1", "unseen_names") == curve[-1]
    assert view.final("nobody", "unseen_names") is None
    assert view.curve("sft", None, "unseen_names") == curve[:1]


def test_sets_are_told_apart(lab: Lab, done_run: str) -> None:
    view = Views(lab).view(done_run)
    assert view.harmful_sets == ("aligned_names", "unseen_names")
    assert set(view.eval_sets) == {"aligned_names", "unseen_names", "ordinary", "task:sentiment"}


def test_attacks_are_kept_apart_and_the_newest_is_shown(lab: Lab, done_run: str) -> None:
    attack = lab.run(done_run).config.attack.model_copy(update={"harmful_ratio": 0.2})
    assert lab.start_attack(done_run, attack, ["sft"]) == "a2"
    view = Views(lab).view(done_run)
    assert view.attack_ids == ("a1", "a2")
    assert view.attacked_defences("a2") == ("sft",)
    assert view.attack_config("a2").harmful_ratio == 0.2
    assert view.choose_attack(None) == view.choose_attack("gone") == "a2"
    assert view.choose_attack("a1") == "a1"
    assert view.active


def test_a_retry_replaces_the_job_before_it(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    first = next(job for job in lab.store.jobs(run_id) if job.params.get("aligned") == "sft")
    lab.store.cancel(first.id)
    second = lab.store.enqueue(run_id, "align", {"aligned": "sft"})
    job = Views(lab).view(run_id).align_job("sft")
    assert job is not None
    assert job.id == second


def test_time_left_follows_the_pace_of_the_last_steps() -> None:
    track = Track(steps={step: step_record(step, 100, 1.0) for step in range(1, 81)})
    assert track.seconds_left() == pytest.approx(2.0)  # 20 steps of 0.1 s
    assert Track(steps={1: step_record(1, 100, 1.0)}).seconds_left() is None
    assert EMPTY_TRACK.seconds_left() is None


def test_progress_of_several_jobs_is_their_mean(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    jobs = lab.store.jobs(run_id)
    finish_job(lab.store, jobs[0].id, [], 40)
    lab.store.claim("test")
    lab.store.append(jobs[1].id, [step_record(step, 40, 1.0) for step in range(1, 11)])
    lab.store.heartbeat(jobs[1].id, (10, 40))
    view = Views(lab).view(run_id)
    share, left = progress_of(view, [job for job in view.jobs if job.kind == "align"])
    assert share == pytest.approx((1.0 + 0.25) / 2)
    assert left == pytest.approx(3.0)
    assert progress_of(view, []) == (0.0, None)


def test_a_deleted_run_is_not_found(lab: Lab, done_run: str) -> None:
    views = Views(lab)
    views.view(done_run)
    lab.delete_run(done_run)
    with pytest.raises(RunNotFoundError):
        views.view(done_run)


def test_many_runs_do_not_fill_the_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "MAX_RUNS", 2)
    views = Views(lab)
    runs = [lab.start_alignment(small_config(steps=steps)) for steps in (1, 2, 3)]
    for run_id in runs:
        assert views.view(run_id).run.id == run_id
    assert views.view(runs[0]).run.id == runs[0]


def test_scores_of_a_later_report_count(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    job_id = lab.store.jobs(run_id)[0].id
    lab.store.append(job_id, [eval_record("aligned/sft", 0, "unseen_names", 10)])
    lab.store.append(job_id, [eval_record("aligned/sft", 0, "unseen_names", 20)])
    record = Views(lab).view(run_id).final("aligned/sft", "unseen_names")
    assert record is not None
    assert record.scores["harmful_score"].percent == 20


def test_numbers_per_layer_are_folded_taken_back_exported_and_drawn(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    job = lab.store.jobs(run_id)[0]
    views = Views(lab)
    heads, alone = ((0.5, 0.25), (1.0, 0.0)), ((3.0,), (4.0,))
    for step in (1, 2):
        lab.store.append(
            job.id,
            [
                LayerValuesRecord(step=step, name="sink <b>", values=heads),
                LayerValuesRecord(step=step, name="norm", values=alone),
                step_record(step, 40, 2.0),
            ],
        )
    before = views.view(run_id)
    assert set(before.tracks[job.id].values) == {("sink <b>", 1), ("norm", 1), ("sink <b>", 2), ("norm", 2)}
    heat, _ = layer_charts.layer_values(before.tracks[job.id])["data"]
    assert (heat["x"], heat["y"]) == ([1, 2], [0, 1])
    assert heat["z"] == [[0.375, 0.375], [0.5, 0.5]]
    assert heat["name"] == "sink &lt;b&gt;"
    assert layer_charts.layer_values(EMPTY_TRACK)["data"] == []

    rows = list(layer_rows(lab.store.events(run_id), lab.store.jobs(run_id)))
    assert rows[:6] == [
        (job.title, 1, "sink <b>", 0, 0, 0.5),
        (job.title, 1, "sink <b>", 0, 1, 0.25),
        (job.title, 1, "sink <b>", 1, 0, 1.0),
        (job.title, 1, "sink <b>", 1, 1, 0.0),
        (job.title, 1, "norm", 0, "", 3.0),
        (job.title, 1, "norm", 1, "", 4.0),
    ]
    lab.store.append(job.id, [step_record(2, 40, 2.0)])  # its checkpoint was of step 1
    assert set(views.view(run_id).tracks[job.id].values) == {("sink <b>", 1), ("norm", 1)}

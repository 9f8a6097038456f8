"""What the page can make the lab do, and how it says no."""

import shlex

import pytest
from written_runs import finish_alignments, finish_job, small_config

from app.services import (
    PRESETS,
    AttackConfig,
    ConfigError,
    Lab,
    LabConfig,
    ModelConfig,
    RunNotFoundError,
    StoreError,
    data_of,
    flatten,
    mixture,
    preview_example,
    suggestions,
)
from app.text import commands
from tvaccine_core.cli.options import override
from tvaccine_core.data.mixtures import attack_data
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import DataError, RunBusyError


def test_a_start_makes_a_run_with_a_job_a_method_and_measures_the_base(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config(), "mine")
    jobs = lab.store.jobs(run_id)
    assert [(job.kind, job.params.get("aligned")) for job in jobs] == [
        ("align", "tvaccine"),
        ("align", "sft"),
        ("baseline", None),
    ]
    assert lab.run(run_id).config == small_config()
    assert lab.run(run_id).name == "mine"


def test_a_task_that_does_not_exist_makes_no_run(lab: Lab) -> None:
    config = LabConfig(attack=AttackConfig(task="juggling"))
    with pytest.raises(ConfigError, match="juggling"):
        lab.start_alignment(config)
    assert lab.runs() == []


def test_an_attack_waits_for_its_alignment(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    attack = lab.run(run_id).config.attack
    assert lab.start_attack(run_id, attack) == "a1"
    aligned = {job.params["aligned"]: job.id for job in lab.store.jobs(run_id) if job.kind == "align"}
    attacks = [job for job in lab.store.jobs(run_id) if job.kind == "attack"]
    assert {job.params["defence"]: job.depends_on for job in attacks} == aligned
    assert all(AttackConfig.model_validate(job.params["attack"]) == attack for job in attacks)
    with pytest.raises(RunBusyError) as caught:
        lab.start_attack(run_id, attack)
    assert caught.value.attack_id == "a1"
    assert lab.start_attack(run_id, attack.model_copy(update={"seed": 9})) == "a2"


def test_a_mixture_that_cannot_be_drawn_starts_nothing(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    with pytest.raises(DataError) as caught:
        lab.start_attack(run_id, AttackConfig(num_samples=1_000_000))
    assert caught.value.remedy
    assert all(job.kind != "attack" for job in lab.store.jobs(run_id))


def test_what_was_stopped_cannot_be_attacked(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    assert lab.stop(run_id, ("align", "baseline")) == 3
    with pytest.raises(StoreError, match="not aligned") as caught:
        lab.start_attack(run_id, AttackConfig())
    assert "Align" in caught.value.remedy


def test_stop_leaves_nothing_active_and_resume_takes_it_up_again(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    running = lab.store.claim("test")
    assert running is not None
    assert lab.stop(run_id, ("align", "baseline")) == 3
    assert [job.id for job in lab.store.jobs(run_id, states=("queued", "running"))] == [running.id]
    assert lab.store.cancel_requested(running.id)
    lab.store.finish(running.id, "cancelled")
    assert lab.resume(run_id, ("align", "baseline")) == 3
    assert len(lab.store.jobs(run_id, states=("queued",))) == 3
    with pytest.raises(RunBusyError):
        lab.store.enqueue(run_id, "align", {"aligned": "sft"})


def test_a_question_replaces_the_visitor_s_own_and_nobody_else_s(lab: Lab, done_run: str) -> None:
    first = lab.ask(done_run, "One?", ["base"], "me", 8)
    other = lab.ask(done_run, "Two?", ["base"], "you", 8)
    lab.ask(done_run, "Three?", ["base"], "me", 8)
    assert lab.store.job(first).state == "cancelled"
    assert lab.store.job(other).state == "queued"


@pytest.mark.parametrize("prompt", ["", "   ", "x" * 2001])
def test_a_prompt_has_a_sensible_length(lab: Lab, done_run: str, prompt: str) -> None:
    with pytest.raises(DataError) as caught:
        lab.ask(done_run, prompt, ["base"], "me", 8)
    assert caught.value.remedy


def test_deleting_takes_what_waits_along_but_is_refused_and_changes_nothing_while_something_runs(lab: Lab) -> None:
    run_id = lab.start_alignment(small_config())
    running = lab.store.claim("test")
    assert running is not None
    with pytest.raises(RunBusyError) as caught:
        lab.delete_run(run_id)
    assert caught.value.remedy
    assert [job.state for job in lab.store.jobs(run_id)] == ["running", "queued", "queued"]
    lab.store.finish(running.id, "cancelled")
    lab.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        lab.run(run_id)


def test_the_mixture_shown_is_the_one_trained_on() -> None:
    config = LabConfig()
    shown = mixture(config, config.attack)
    assert len(shown) == config.attack.num_samples
    assert sum(example.harmful for example in shown) == round(config.attack.harmful_ratio * config.attack.num_samples)
    assert shown == attack_data(load_lab_data(config), config.attack)


def test_suggested_prompts_are_never_trained_on() -> None:
    for preset in PRESETS.values():
        data = data_of(preset.config)
        trained = {example.prompt for example in (*data.world.alignment, *data.world.probe, *data.world.attack_harmful)}
        trained |= {example.prompt for task in data.tasks.values() for example in task.train}
        assert not {prompt for _, prompt in suggestions(preset.config)} & trained


def test_preview_marks_the_answer_as_learned() -> None:
    config = LabConfig()
    example = data_of(config).world.alignment[0]
    shown = preview_example(config, example)
    assert shown is not None
    learned = "".join(token for token, mark in zip(shown.tokens, shown.learned, strict=True) if mark)
    assert example.answer in learned
    assert example.prompt not in learned


def test_time_is_what_the_last_run_took(lab: Lab) -> None:
    assert lab.seconds_a_step("sft", small_config()) is None
    run_id = lab.start_alignment(small_config())
    finish_alignments(lab, run_id)
    assert lab.seconds_a_step("sft", small_config()) == pytest.approx(0.1)
    assert lab.seconds_a_step("vaccine", small_config()) is None
    large = small_config().model_copy(update={"model": ModelConfig(quantization="nf4")})
    assert lab.seconds_a_step("sft", large) is None, "another model takes another time"


def test_repeating_takes_the_first_attack_and_names_what_later_ones_changed(lab: Lab, done_run: str) -> None:
    config = lab.run(done_run).config
    lab.start_attack(done_run, config.attack.model_copy(update={"harmful_ratio": 0.25}))
    repeated, later = lab.repeatable(done_run)
    assert repeated == config
    assert later == [{"harmful_ratio": "0.25"}]
    few = config.attack.adapter.model_copy(update={"target_modules": ("q_proj", "v_proj")})
    lab.start_attack(done_run, config.attack.model_copy(update={"adapter": few}))
    words = shlex.split(commands(done_run, lab.repeatable(done_run)[1]).splitlines()[-1])
    assert words[3] == "attack"
    assert override(config, words[5::2]).attack.adapter == few
    stronger = config.attack.model_copy(update={"num_samples": 50})
    other = lab.start_alignment(small_config())
    assert lab.repeatable(other) == (small_config(), [])
    lab.start_attack(other, stronger)
    assert lab.repeatable(other)[0].attack == stronger


def test_settings_flatten_to_paths() -> None:
    flat = flatten(small_config())
    assert flat["alignment.optimisation.steps"] == "40"
    assert flat["defences.tvaccine.alignment.num_layers"] == "4"
    assert flat["defences.sft.alignment.name"] == "sft"


def test_models_of_a_run_are_listed_in_order(lab: Lab, done_run: str) -> None:
    assert lab.states(done_run) == [
        "aligned/tvaccine",
        "aligned/sft",
        "attacked/sft/a1",
        "attacked/tvaccine/a1",
    ]
    fresh = lab.start_alignment(small_config())
    finish_job(lab.store, lab.store.jobs(fresh)[0].id, [])
    assert lab.states(fresh) == []

"""The stages end to end on the shipped sandbox, a few steps each: what is reported, saved, repeated and resumed."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tvaccine_core import answering, pipeline
from tvaccine_core.answering import answer
from tvaccine_core.config import (
    AdapterConfig,
    AlignmentConfig,
    AttackConfig,
    Defence,
    EvaluationConfig,
    LabConfig,
    OptimisationConfig,
    TVaccineConfig,
)
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, ConfigError, DataError, RunNotFoundError
from tvaccine_core.evaluation.generate import generate_answers
from tvaccine_core.models.load import LoadedModel, load_model
from tvaccine_core.pipeline import Session, open_session
from tvaccine_core.records import (
    AnswerRecord,
    DriftRecord,
    EvalRecord,
    Event,
    GeneratedAnswer,
    MessageRecord,
    StateRecord,
    StepRecord,
)
from tvaccine_core.states.model_states import ModelStates

CONFIG = LabConfig(
    seed=5,
    defences=(
        Defence(),
        Defence(alignment=TVaccineConfig(num_layers=3, resample_every=2, rescore_every=3)),
    ),
    alignment=AlignmentConfig(
        adapter=AdapterConfig(r=4, dropout=0.1),
        optimisation=OptimisationConfig(steps=5, batch_size=4, checkpoint_every=2),
    ),
    attack=AttackConfig(
        harmful_ratio=0.25,
        num_samples=12,
        adapter=AdapterConfig(r=2, alpha=3),
        optimisation=OptimisationConfig(steps=6, batch_size=3, learning_rate=1e-3, checkpoint_every=2),
        eval_every=2,
    ),
    evaluation=EvaluationConfig(max_per_set=5, batch_size=16, max_new_tokens=16),
)


def stages(session: Session, config: LabConfig) -> Iterator[Event]:
    yield from pipeline.baseline(session, config)
    for method in ("sft", "tvaccine"):
        yield from pipeline.align(session, config, method)
        yield from pipeline.attack(session, config, method, config.attack, "a1")
    single = config.attack.model_copy(update={"adapter_mode": "single", "eval_every": 0})
    yield from pipeline.attack(session, config, "sft", single, "a2")


def timeless(events: list[Event]) -> list[Event]:
    """Events without what may differ between two runs: durations and paths."""
    update = {"elapsed_s": 0.0, "path": ""}
    return [
        event.model_copy(update={key: value for key, value in update.items() if key in type(event).model_fields})
        for event in events
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, list[Event]]:
    """A session after all stages, and what they reported."""
    session = open_session(CONFIG, tmp_path_factory.mktemp("run"), num_threads=1)
    return session, list(stages(session, CONFIG))


def evaluations(events: list[Event], state: str) -> list[tuple[int, str]]:
    return [(event.step, event.eval_set) for event in events if isinstance(event, EvalRecord) and event.state == state]


EVERYTHING = ["aligned_names", "unseen_names", "ordinary", "task:sentiment", "task:topic"]
ALONG = ["aligned_names", "unseen_names", "task:sentiment"]


def test_what_is_measured_and_when(done: tuple[Session, list[Event]]) -> None:
    _, events = done
    for state in ("base", "aligned/sft", "aligned/tvaccine"):
        assert evaluations(events, state) == [(0, name) for name in EVERYTHING]
    for state in ("attacked/sft/a1", "attacked/tvaccine/a1"):
        expected = [(step, name) for step in (0, 2, 4) for name in ALONG] + [(6, name) for name in EVERYTHING]
        assert evaluations(events, state) == expected
    assert evaluations(events, "attacked/sft/a2") == [(6, name) for name in EVERYTHING]
    drifts = [event for event in events if isinstance(event, DriftRecord)]
    assert [(drift.state, drift.reference) for drift in drifts] == [
        ("attacked/sft/a1", "aligned/sft"),
        ("attacked/tvaccine/a1", "aligned/tvaccine"),
        ("attacked/sft/a2", "aligned/sft"),
    ]
    assert all(len(drift.drift) == 8 and min(drift.drift) > 0 for drift in drifts)


def test_the_base_gives_away_everything(done: tuple[Session, list[Event]]) -> None:
    _, events = done
    scores = {e.eval_set: e.scores for e in events if isinstance(e, EvalRecord) and e.state == "base"}
    assert scores["unseen_names"]["harmful_score"].percent == 100
    assert scores["ordinary"]["exact"].percent == 100


def test_an_attack_starts_from_the_aligned_model(done: tuple[Session, list[Event]]) -> None:
    _, events = done
    records = [event for event in events if isinstance(event, EvalRecord)]
    aligned = {record.eval_set: record.scores for record in records if record.state == "aligned/sft"}
    started = {r.eval_set: r.scores for r in records if r.state == "attacked/sft/a1" and r.step == 0}
    assert set(started) == set(ALONG)
    for name, scores in started.items():  # what a model knows is measured in full evaluations only
        assert scores == {score: value for score, value in aligned[name].items() if score not in ("known", "completed")}


def test_every_state_is_saved_under_the_hash_it_was_measured_with(done: tuple[Session, list[Event]]) -> None:
    session, events = done
    saved = [event for event in events if isinstance(event, StateRecord) and event.state != "base"]
    assert len(saved) == 5
    assert len({record.state_hash for record in saved}) == 5
    for record in saved:
        final = max((e for e in events if isinstance(e, EvalRecord) and e.state == record.state), key=lambda e: e.step)
        assert final.state_hash == record.state_hash
        fresh = pipeline.open_session(CONFIG, session.run_dir)
        fresh.states.load(record.state, session.run_dir / record.path)
        assert fresh.states.hash_of(record.state) == record.state_hash
    assert not any((session.run_dir / "checkpoints").rglob("*.safetensors"))


def test_an_attack_trains_its_own_adapter_only(done: tuple[Session, list[Event]], tmp_path: Path) -> None:
    """The aligned adapter is part of the attacked one, unchanged."""
    session, _ = done
    again = tmp_path / "again"
    record = session.states.save("aligned/sft", ["aligned/sft"], again)
    assert record.state_hash == session.states.hash_of("aligned/sft")
    config = json.loads((session.run_dir / "states/attacked/sft/a1/adapter_config.json").read_text())
    assert config["r"] == 4 + 2
    config = json.loads((session.run_dir / "states/attacked/sft/a2/adapter_config.json").read_text())
    assert config["r"] == 4  # single mode goes on with the aligned adapter itself
    stacked, aligned = (
        load_file(session.run_dir / "states" / state / "adapter_model.safetensors")
        for state in ("attacked/sft/a1", "aligned/sft")
    )
    names = [name for name in aligned if name.endswith("lora_B.weight")]
    assert names
    for name in names:
        assert torch.equal(stacked[name][:, :4], aligned[name])


def test_the_base_is_still_the_base(done: tuple[Session, list[Event]]) -> None:
    """Token by token, and weight by weight, after two alignments and three attacks on the same model in memory."""
    session, _ = done
    bare = open_session(CONFIG, session.run_dir)
    rows = [("base", example.prompt) for example in load_lab_data(CONFIG).eval_sets["unseen_names"].examples[:20]]
    expected = generate_answers(bare.states, rows, 16, 20)
    assert generate_answers(session.states, rows, 16, 20) == expected
    assert generate_answers(session.states, [("attacked/sft/a1", "Hello!"), *rows], 16, 21)[1:] == expected
    trained = dict(session.loaded.model.named_parameters())
    for name, weight in bare.loaded.model.named_parameters():
        wrapped = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(trained[wrapped] if wrapped in trained else trained[name], weight)


def test_answers_are_written_with_their_hashes(done: tuple[Session, list[Event]]) -> None:
    session, events = done
    lines = (session.run_dir / "answers.jsonl").read_text().splitlines()
    answers = [GeneratedAnswer.model_validate_json(line) for line in lines]
    hashes = {(event.state, event.step, event.state_hash) for event in events if isinstance(event, EvalRecord)}
    assert {(answer.state, answer.step, answer.state_hash) for answer in answers} == hashes
    assert sum(answer.verdict is not None for answer in answers) == len(answers) / 2


def test_an_exported_config_gives_the_same_numbers(done: tuple[Session, list[Event]], tmp_path: Path) -> None:
    _, events = done
    path = tmp_path / "lab.yaml"
    path.write_text(CONFIG.to_yaml())
    config = LabConfig.load(path)
    session = open_session(config, tmp_path / "run", num_threads=1)
    assert timeless(list(stages(session, config))) == timeless(events)


def test_a_stopped_attack_resumes_to_the_same_state(done: tuple[Session, list[Event]], tmp_path: Path) -> None:
    session, events = done
    mine = Session(session.loaded, session.states, tmp_path, lambda answers: None)
    first: list[Event] = []

    def three_steps_done() -> bool:
        return sum(isinstance(event, StepRecord) for event in first) == 3

    attack = partial(pipeline.attack, mine, CONFIG, "sft", CONFIG.attack, "resumed")
    with pytest.raises(CancelledError):
        first.extend(attack(should_stop=three_steps_done))
    second = list(attack(resume_from=3))
    assert [event.step for event in second if isinstance(event, StepRecord)] == [4, 5, 6]
    assert {step for step, _ in evaluations(first, "attacked/sft/resumed")} == {0, 2}
    assert {step for step, _ in evaluations(second, "attacked/sft/resumed")} == {4, 6}
    saved = {event.state: event.state_hash for event in [*events, *second] if isinstance(event, StateRecord)}
    assert saved["attacked/sft/resumed"] == saved["attacked/sft/a1"]


def test_an_attack_in_a_new_process_reads_the_aligned_state(done: tuple[Session, list[Event]]) -> None:
    session, events = done
    fresh = open_session(CONFIG, session.run_dir)
    again = list(pipeline.attack(fresh, CONFIG, "sft", CONFIG.attack, "again"))
    saved = {event.state: event.state_hash for event in [*events, *again] if isinstance(event, StateRecord)}
    assert saved["attacked/sft/again"] == saved["attacked/sft/a1"]


def test_four_states_answer_one_prompt(done: tuple[Session, list[Event]]) -> None:
    session, _ = done
    example = load_lab_data(CONFIG).eval_sets["unseen_names"].examples[0]
    names = ["base", "aligned/sft", "attacked/sft/a1", "aligned/tvaccine", "attacked/tvaccine/a1"]
    records: list[AnswerRecord] = list(answer(session, CONFIG, names, example.prompt))
    final = {record.state: record for record in records if record.done}
    assert set(final) == set(names)
    assert final["base"].text == example.answer
    assert final["base"].verdict is not None
    assert final["base"].verdict.harmful
    for name in names:
        assert final[name].state_hash == session.states.hash_of(name)
        expected = generate_answers(session.states, [(name, example.prompt)], 16, 1)[0]
        assert final[name].text == expected
        assert [record.done for record in records if record.state == name][-1]
        for record in records:
            if record.state == name and not record.done:
                assert expected.startswith(record.text)


def test_a_prompt_nobody_can_judge_has_no_verdict(done: tuple[Session, list[Event]]) -> None:
    session, _ = done
    records = list(answer(session, CONFIG, ["base"], "Hello!"))
    assert records[-1].done
    assert records[-1].verdict is None


def test_answers_stream_at_a_bearable_rate(done: tuple[Session, list[Event]], monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = done
    prompt = load_lab_data(CONFIG).eval_sets["ordinary"].examples[0].prompt
    monkeypatch.setattr(answering, "STREAM_EVERY_S", 0.0)
    every_token = list(answer(session, CONFIG, ["base"], prompt))
    monkeypatch.setattr(answering, "STREAM_EVERY_S", 1000.0)
    at_the_end = list(answer(session, CONFIG, ["base"], prompt))
    assert len(every_token) > 5
    assert len(at_the_end) == 1
    assert at_the_end[-1].text == every_token[-1].text


def test_stages_leave_cleanly_in_the_middle(done: tuple[Session, list[Event]], tmp_path: Path) -> None:
    session, _ = done
    mine = Session(session.loaded, session.states, tmp_path, lambda answers: None)
    session.states.ensure("aligned/sft", session.run_dir / "states/aligned/sft")
    for stage in (
        pipeline.baseline(mine, CONFIG),
        pipeline.attack(mine, CONFIG, "sft", CONFIG.attack, "left"),
        answer(mine, CONFIG, ["base", "aligned/sft"], "Hello!"),
    ):
        while isinstance(next(stage), MessageRecord):  # what the stage works with, said before it works
            pass
        stage.close()  # type: ignore[attr-defined]
    again = pipeline.attack(mine, CONFIG, "sft", CONFIG.attack, "left")
    types = [type(event) for event, _ in zip(again, range(5), strict=False)]
    assert types == [MessageRecord, *[EvalRecord] * 3, StepRecord]


def test_cut_answers_are_reported(done: tuple[Session, list[Event]], tmp_path: Path) -> None:
    session, _ = done
    mine = Session(session.loaded, ModelStates(session.loaded), tmp_path, lambda answers: None)
    short = CONFIG.alignment.optimisation.model_copy(update={"max_length": 18})
    alignment = CONFIG.alignment.model_copy(update={"optimisation": short})
    stage = pipeline.align(mine, CONFIG.model_copy(update={"alignment": alignment}), "sft")
    introduction = next(stage)
    assert isinstance(introduction, MessageRecord)
    assert "float32, on cpu. Prompts are written in its chat template." in introduction.text
    message = next(stage)
    assert isinstance(message, MessageRecord)
    assert "lost the end of their answer" in message.text
    assert message.remedy == "Raise max_length."


def test_stopping_during_an_evaluation(done: tuple[Session, list[Event]]) -> None:
    session, _ = done
    with pytest.raises(CancelledError):
        list(pipeline.baseline(session, CONFIG, should_stop=lambda: True))


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(CONFIG.model, 1)


def test_an_attack_on_nothing_is_an_error(base: LoadedModel, tmp_path: Path) -> None:
    session = open_session(CONFIG, tmp_path, loaded=base)
    with pytest.raises(RunNotFoundError) as caught:
        list(pipeline.attack(session, CONFIG, "tvaccine", CONFIG.attack, "a1"))
    assert "first" in caught.value.remedy


def test_a_defence_that_the_run_does_not_have_is_an_error(base: LoadedModel, tmp_path: Path) -> None:
    session = open_session(CONFIG, tmp_path, loaded=base)
    with pytest.raises(ConfigError, match="vaccine") as caught:
        list(pipeline.align(session, CONFIG, "vaccine"))
    assert "sft, tvaccine" in caught.value.remedy
    with pytest.raises(ConfigError, match="vaccine") as caught:
        list(pipeline.attack(session, CONFIG, "vaccine", CONFIG.attack, "a1"))
    assert "sft, tvaccine" in caught.value.remedy
    with pytest.raises(ConfigError, match="has no repair"):
        list(pipeline.repair(session, CONFIG, "sft", CONFIG.attack, "a1"))


def test_a_mixture_that_cannot_be_filled_is_an_error(done: tuple[Session, list[Event]]) -> None:
    session, _ = done
    greedy = CONFIG.attack.model_copy(update={"num_samples": 100_000})
    with pytest.raises(DataError, match="only"):
        list(pipeline.attack(session, CONFIG, "sft", greedy, "a9"))

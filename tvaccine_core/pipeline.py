"""The lab's stages in the order of the literature, each a generator of events.

1. `baseline`: score the base model.
2. `align`: the provider teaches the model to refuse, by one method, and scores it.
3. `attack`: the user fine-tunes it on a mixture with harmful samples; scores are taken along the way.
Beside them, `answer`: one prompt, several states, streamed.

Artifacts lie under the run's folder: `states/<state>/` (one peft adapter each), `checkpoints/<job>/` while a stage
trains, and `answers.jsonl` where no store takes the answers.

Several processes (`Session.ranks`) may run `align` and `attack` side by side: all train; the leader alone measures and
touches the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvaccine_core.adapters import BASE, ModelStates
from tvaccine_core.attack import prepare_attack
from tvaccine_core.checkpoints import discard_checkpoints, last_step
from tvaccine_core.config import AttackConfig, LabConfig, MethodConfig, SFTConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.data.mixtures import attack_data
from tvaccine_core.data.prompts import Encoded, encode_all, template_name
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, ConfigError
from tvaccine_core.evaluation.drift import embedding_drift
from tvaccine_core.evaluation.generate import decode, stream_tokens
from tvaccine_core.evaluation.scores import evaluate_state, evaluation_examples
from tvaccine_core.hooks import find_blocks
from tvaccine_core.methods import load_method
from tvaccine_core.models import LoadedModel, load_model
from tvaccine_core.ranks import ALONE, Ranks, Word
from tvaccine_core.records import AnswerRecord, Event, Example, GeneratedAnswer, MessageRecord, StateRecord, StepRecord
from tvaccine_core.training import fit

STREAM_EVERY_S = 0.1
"""Answers stream no faster than this: each record goes through the run store."""


@dataclass(frozen=True, eq=False)
class Session:
    """A model in memory, its states, and the folder of one run."""

    loaded: LoadedModel
    states: ModelStates
    run_dir: Path
    save_answers: Callable[[list[GeneratedAnswer]], None]
    ranks: Ranks = ALONE


def open_session(
    config: LabConfig,
    run_dir: Path,
    *,
    num_threads: int | None = None,
    loaded: LoadedModel | None = None,
    save_answers: Callable[[list[GeneratedAnswer]], None] | None = None,
) -> Session:
    """Load the model of `config` and prepare to work in `run_dir`.

    Args:
        config: names the model.
        run_dir: made if missing.
        num_threads: see `load_model`.
        loaded: a model already in memory, instead of loading one. It must have no adapters.
        save_answers: takes the answers of evaluations, first as generated, then with verdicts; default: appends them
            to `run_dir/answers.jsonl`, where the last line of an answer counts.

    Raises:
        ModelError: the model cannot be loaded.
    """
    run_dir.mkdir(parents=True, exist_ok=True)

    def append(answers: list[GeneratedAnswer]) -> None:
        with (run_dir / "answers.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(answer.model_dump_json() + "\n" for answer in answers)

    loaded = loaded or load_model(config.model, num_threads)
    return Session(loaded, ModelStates(loaded), run_dir, save_answers or append)


def aligned_state(method: str) -> str:
    """Name of the state that aligning by `method` gives."""
    return f"aligned/{method}"


def attacked_state(method: str, attack_id: str) -> str:
    """Name of the state that attack `attack_id` on `method` gives."""
    return f"attacked/{method}/{attack_id}"


def state_folder(run_dir: Path, state: str) -> Path:
    """Where the adapter of `state` is saved."""
    return run_dir / "states" / state


def checkpoint_folder(run_dir: Path, state: str) -> Path:
    """Where training of `state` keeps its checkpoints."""
    return run_dir / "checkpoints" / state


def baseline(session: Session, config: LabConfig, *, should_stop: Callable[[], bool] | None = None) -> Iterator[Event]:
    """Score the base model on every set and task.

    Raises:
        CancelledError: `should_stop` said so.
    """
    data = load_lab_data(config)
    yield StateRecord(state=BASE, state_hash=session.states.hash_of(BASE), path="")
    yield from evaluate_state(
        session.states,
        BASE,
        data,
        config.evaluation,
        list(data.tasks),
        0,
        session.save_answers,
        should_stop=should_stop,
    )


def align(
    session: Session,
    config: LabConfig,
    method_name: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: int = 0,
) -> Iterator[Event]:
    """Align the base by one method of `config`, save the state, and score it on every set and task.

    With `resume_from` it goes on from the newest checkpoint that is not of a later step: give the last of which a
    `CheckpointRecord` was kept, for what was reported after that may be lost. 0 begins anew.

    Raises:
        ConfigError: the method is not in `config`.
        What `fit`, `evaluate_state` and `ModelStates.save` raise.
    """
    data, states, ranks = load_lab_data(config), session.states, session.ranks
    method = load_method(_method_config(config, method_name))
    state = aligned_state(method_name)
    optimisation = config.alignment.optimisation
    yield from _introduce(session)
    encoded = yield from _encode(session, data.alignment, optimisation.max_length)
    probe = yield from _encode(session, data.probe, optimisation.max_length)

    # 1. A fresh adapter: the same for every method of a seed.
    states.drop(state)
    states.add(state, config.alignment.adapter, derive_seed(config.seed, "adapter"))
    states.train(state)

    # 2. Train it.
    checkpoints = checkpoint_folder(session.run_dir, state)
    if ranks.leads:
        discard_checkpoints(checkpoints, after=resume_from)
    yield from fit(
        states.model,
        method,
        encoded,
        optimisation,
        seed=config.seed,
        pad_id=session.loaded.pad_id,
        probe=probe,
        checkpoint_dir=checkpoints,
        resume=bool(resume_from),
        should_stop=should_stop,
        ranks=ranks,
        activation_memory=config.model.activation_memory,
        fast_paths=config.model.fast_paths,
    )
    if not ranks.leads:
        return

    # 3. Save the state and score it.
    yield states.save(state, [state], state_folder(session.run_dir, state), relative_to=session.run_dir)
    yield from evaluate_state(
        states, state, data, config.evaluation, list(data.tasks), 0, session.save_answers, should_stop=should_stop
    )
    discard_checkpoints(checkpoints)


def attack(
    session: Session,
    config: LabConfig,
    method_name: str,
    attack: AttackConfig,
    attack_id: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: int = 0,
) -> Iterator[Event]:
    """Attack the model aligned by one method; measure HS and FA along the way, everything and the drift at the end.

    `resume_from`: see `align`.

    Raises:
        RunNotFoundError: that method's aligned state does not exist yet.
        DataError: too few examples for the mixture.
        What `fit`, `evaluate_state` and `ModelStates.save` raise.
    """
    data, states, ranks = load_lab_data(config), session.states, session.ranks
    aligned, attacked = aligned_state(method_name), attacked_state(method_name, attack_id)
    if ranks.leads:
        states.ensure(aligned, state_folder(session.run_dir, aligned))
    if ranks.size > 1:
        states.share(aligned, ranks)
    steps = attack.optimisation.steps

    def measure(step: int, sets: Sequence[str], tasks: Sequence[str]) -> Iterator[Event]:
        if ranks.leads:
            yield from evaluate_state(
                states,
                attacked,
                data,
                config.evaluation,
                tasks,
                step,
                session.save_answers,
                sets=sets,
                should_stop=should_stop,
            )

    # 1. The user's data: the same for every method.
    yield from _introduce(session)
    encoded = yield from _encode(session, attack_data(data, attack), attack.optimisation.max_length)

    # 2. Fine-tune on it, measuring along the way.
    trained = prepare_attack(states, attack, aligned=aligned, attacked=attacked)
    checkpoints = checkpoint_folder(session.run_dir, attacked)
    if ranks.leads:
        discard_checkpoints(checkpoints, after=resume_from)
    if attack.eval_every and not last_step(checkpoints):
        with _others_wait(ranks):
            yield from measure(0, data.harmful_sets, [attack.task])
    if ranks.agree(Word.GO_ON) == Word.LEAVE:
        raise CancelledError("The leading process was stopped.")
    for event in fit(
        states.model,
        load_method(SFTConfig()),
        encoded,
        attack.optimisation,
        seed=attack.seed,
        pad_id=session.loaded.pad_id,
        checkpoint_dir=checkpoints,
        resume=bool(resume_from),
        should_stop=should_stop,
        ranks=ranks,
        activation_memory=config.model.activation_memory,
        fast_paths=config.model.fast_paths,
    ):
        yield event
        if not isinstance(event, StepRecord) or not attack.eval_every:
            continue
        if event.step % attack.eval_every == 0 and event.step < steps:
            with _others_wait(ranks):
                yield from measure(event.step, data.harmful_sets, [attack.task])
    if not ranks.leads:
        return

    # 3. Save the state, score it on everything, and see how far it drifted.
    yield states.save(attacked, [attacked], state_folder(session.run_dir, attacked), relative_to=session.run_dir)
    states.drop(trained)
    yield from measure(steps, list(data.eval_sets), list(data.tasks))
    prompts = [
        example.prompt for name in data.harmful_sets for example in evaluation_examples(data, name, config.evaluation)
    ]
    yield embedding_drift(states, attacked, aligned, prompts, config.evaluation.batch_size)
    discard_checkpoints(checkpoints)


def answer(
    session: Session,
    config: LabConfig,
    states: Sequence[str],
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    time_limit_s: float = float("inf"),
) -> Iterator[AnswerRecord]:
    """Answer one prompt in several states at once; about ten records a second and state, the last one judged.

    Args:
        session: the run.
        config: its config.
        states: names; states that are not in memory are loaded from the run's folder.
        prompt: as the user wrote it.
        max_new_tokens: default: as in evaluations.
        should_stop: asked before every token.
        time_limit_s: answers end where they are after so many seconds.

    Raises:
        RunNotFoundError: a state does not exist.
        CancelledError: `should_stop` said so.
    """
    for state in states:
        session.states.ensure(state, state_folder(session.run_dir, state))
    hashes = [session.states.hash_of(state) for state in states]
    judge = load_lab_data(config).judge
    example = judge.recognise(prompt)
    ids: list[list[int]] = [[] for _ in states]
    waiting: set[int] = set()
    last = time.monotonic()

    def record(row: int, done: bool) -> AnswerRecord:
        text = decode(session.states, ids[row])
        return AnswerRecord(
            state=states[row],
            state_hash=hashes[row],
            prompt=prompt,
            text=text,
            done=done,
            verdict=judge.judge(example, text) if done and example else None,
        )

    for step in stream_tokens(
        session.states,
        [(state, prompt) for state in states],
        max_new_tokens or config.evaluation.max_new_tokens,
        should_stop=should_stop,
        time_limit_s=time_limit_s,
    ):
        for row, token in step.tokens:
            ids[row].append(token)
            waiting.add(row)
        for row in step.ended:
            waiting.discard(row)
            yield record(row, done=True)
        if waiting and time.monotonic() - last >= STREAM_EVERY_S:
            for row in sorted(waiting):
                yield record(row, done=False)
            waiting.clear()
            last = time.monotonic()


@contextmanager
def _others_wait(ranks: Ranks) -> Iterator[None]:
    """For what the leader does while the others wait for its word: if it is stopped, they must hear of it."""
    try:
        yield
    except BaseException:
        if ranks.leads:
            ranks.agree(Word.LEAVE)
        raise


def _method_config(config: LabConfig, name: str) -> MethodConfig:
    for method in config.alignment.methods:
        if method.name == name:
            return method
    names = ", ".join(method.name for method in config.alignment.methods)
    raise ConfigError(f"This run does not align by {name!r}.", remedy=f"Choose one of its methods: {names}.")


def _introduce(session: Session) -> Iterator[Event]:
    """What the stage works with, so that nobody has to guess the device or the template."""
    loaded = session.loaded
    stored = loaded.config.dtype if loaded.config.quantization == "none" else loaded.config.quantization
    blocks = len(find_blocks(loaded.model))
    template = {"Alpaca": "the Alpaca template (the model has no chat template)"}
    name = template_name(loaded.tokenizer)
    yield MessageRecord(
        level="info",
        text=f"{type(loaded.model).__name__}, {blocks} layers, {stored}, on {loaded.device}. "
        f"Prompts are written in {template.get(name, f'its {name}')}.",
    )
    if loaded.config.trust_remote_code:
        yield MessageRecord(
            level="warning",
            text=f"trust_remote_code is on: Python code that came with {loaded.config.name} runs with your rights.",
            remedy="Turn it off unless you trust its author and have read it.",
        )


def _encode(session: Session, examples: Sequence[Example], max_length: int) -> Generator[Event, None, list[Encoded]]:
    """Tokenise once, and tell the user what was not as expected."""
    tokenizer = session.loaded.tokenizer
    encoded = encode_all(tokenizer, examples, max_length)
    session.loaded.require_known(max(example.input_ids) for example in encoded)
    if num_cut := sum(example.cut for example in encoded):
        yield MessageRecord(
            level="warning",
            text=f"{num_cut} of {len(encoded)} examples lost the end of their answer: "
            f"they are longer than max_length, {max_length} tokens.",
            remedy="Raise max_length.",
        )
    return encoded

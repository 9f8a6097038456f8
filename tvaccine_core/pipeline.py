"""The lab's stages in the order of the literature, each a generator of events.

1. `baseline`: score the base model.
2. `align`: the provider chooses the alignment data, teaches the model to refuse, and scores it.
3. `attack`: fine-tune on the user's mixture with harmful samples, with scores along the way.
4. `repair`: the provider repairs the model afterwards; it is scored again.
Artifacts are in the run's folder: `states/<state>/` (one peft adapter each), `checkpoints/<job>/` while a stage trains,
and `answers.jsonl` if no store takes the answers.

Several processes (`Session.ranks`) may run `align` and `attack` together: all train; only the leader measures and uses
the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvaccine_core.config import PLAIN, AttackConfig, Defence, LabConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.data.mixtures import alignment_data, attack_data
from tvaccine_core.data.prompts import Encoded, encode_all, template_name
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, ConfigError
from tvaccine_core.evaluation.drift import embedding_drift
from tvaccine_core.evaluation.evaluate import evaluate_state
from tvaccine_core.evaluation.judges import load_judge
from tvaccine_core.evaluation.scores import evaluation_examples
from tvaccine_core.methods import capabilities_of, load_method
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.models.load import LoadedModel, load_model
from tvaccine_core.names import BASE, aligned_state, attacked_state, checkpoint_folder, repaired_state, state_folder
from tvaccine_core.processes import ALONE, Ranks, Word
from tvaccine_core.records import Event, Example, GeneratedAnswer, MessageRecord, StateRecord, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.attack import prepare_attack
from tvaccine_core.training.checkpoints import discard_checkpoints, last_step
from tvaccine_core.training.fit import fit
from tvaccine_core.training.strength import relative_strength


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
        save_answers: takes the answers of evaluations, first as generated, then with verdicts. The default appends them
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


def measure(
    session: Session,
    config: LabConfig,
    state: str,
    step: int = 0,
    *,
    sets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Score a state that is in memory, by default on everything and with what it knows; see `evaluate_state`.

    Raises:
        CancelledError: `should_stop` said so.
        ConfigError: see `load_lab_data` and `load_judge`.
    """
    data = load_lab_data(config)
    yield from evaluate_state(
        session.states,
        state,
        data,
        load_judge(config.data.judge, data.world),
        config.evaluation,
        step,
        session.save_answers,
        sets=sets,
        tasks=tasks,
        knowledge=sets is None,
        should_stop=should_stop,
    )


def baseline(
    session: Session, config: LabConfig, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Score the base model on every set and task.

    Raises:
        CancelledError: `should_stop` said so.
    """
    yield StateRecord(state=BASE, state_hash=session.states.hash_of(BASE), path="")
    yield from measure(session, config, BASE, should_stop=should_stop)


def align(
    session: Session,
    config: LabConfig,
    key: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: int = 0,
) -> Iterator[Event]:
    """Align the base for the defences of `config` with this aligned key, save the state, and score it.

    With `resume_from` it goes on from the newest checkpoint that is not of a later step. Give the last step whose
    `CheckpointRecord` was kept, because later records may be lost. 0 starts anew.

    Raises:
        ConfigError: no defence of `config` has this key.
        Errors of `fit`, `evaluate_state` and `ModelStates.save`.
    """
    data, states, ranks = load_lab_data(config), session.states, session.ranks
    method = load_method(_defence_with(config, key).alignment)
    state = aligned_state(key)
    optimisation = config.alignment.optimisation
    yield from _introduce(session)
    encoded = yield from _encode(session, alignment_data(data, config.alignment.mix), optimisation.max_length)
    probe = yield from _encode(session, data.world.probe, optimisation.max_length)

    # 1. A fresh adapter: the same for every method of a seed.
    states.drop(state)
    states.add(state, config.alignment.adapter, derive_seed(config.seed, "adapter"))
    states.train(state)

    # 2. Train it.
    if not resume_from and capabilities_of(method.config).perturbs:
        yield _say_strength(session, encoded[: optimisation.batch_size], method.config.rho)
    checkpoints = checkpoint_folder(session.run_dir, state)
    if ranks.leads:
        discard_checkpoints(checkpoints, after=resume_from)
    yield from fit(
        states.model,
        method,
        {"alignment": encoded, "harmful": probe},
        optimisation,
        seed=config.seed,
        pad_id=session.loaded.pad_id,
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
    yield from measure(session, config, state, should_stop=should_stop)
    discard_checkpoints(checkpoints)


def attack(
    session: Session,
    config: LabConfig,
    defence_name: str,
    attack: AttackConfig,
    attack_id: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: int = 0,
) -> Iterator[Event]:
    """Attack one defence of `config`; measure HS and FA along the way, and all scores and the drift at the end.

    `resume_from`: see `align`.

    Raises:
        RunNotFoundError: the defence's aligned state does not exist yet.
        DataError: there are too few examples for the mixture.
        Errors of `fit`, `evaluate_state` and `ModelStates.save`.
    """
    config = config.model_copy(update={"attack": attack})
    data, states, ranks = load_lab_data(config), session.states, session.ranks
    defence = config.defence(defence_name)
    aligned, attacked = aligned_state(config.aligned_keys()[defence.name]), attacked_state(defence.name, attack_id)
    if ranks.leads:
        states.ensure(aligned, state_folder(session.run_dir, aligned))
    if ranks.size > 1:
        states.share(aligned, ranks)
    steps = attack.optimisation.steps

    def along(step: int) -> Iterator[Event]:
        """Measurements while the attack trains: HS, and FA on the user's task."""
        if ranks.leads:
            yield from measure(
                session, config, attacked, step, sets=data.harmful_sets, tasks=[attack.task], should_stop=should_stop
            )

    # 1. The user's data: the same for every defence.
    yield from _introduce(session)
    encoded = yield from _encode(session, attack_data(data, attack), attack.optimisation.max_length)

    # 2. Fine-tune on it by the defence's method, measuring along the way.
    trained = prepare_attack(states, attack, aligned=aligned, attacked=attacked)
    checkpoints = checkpoint_folder(session.run_dir, attacked)
    if ranks.leads:
        discard_checkpoints(checkpoints, after=resume_from)
    if attack.eval_every and not last_step(checkpoints):
        with _others_wait(ranks):
            yield from along(0)
    if ranks.agree(Word.GO_ON) == Word.LEAVE:
        raise CancelledError("The leading process was stopped.")
    for event in fit(
        states.model,
        load_method(defence.finetuning),
        {"user": encoded},
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
                yield from along(event.step)
    if not ranks.leads:
        return

    # 3. Save the state, score it on everything, and see how far it drifted.
    yield states.save(attacked, [attacked], state_folder(session.run_dir, attacked), relative_to=session.run_dir)
    states.drop(trained)
    yield from measure(session, config, attacked, steps, should_stop=should_stop)
    prompts = [
        example.prompt for name in data.harmful_sets for example in evaluation_examples(data, name, config.evaluation)
    ]
    yield embedding_drift(states, attacked, aligned, prompts, config.evaluation.batch_size)
    discard_checkpoints(checkpoints)


def repair(
    session: Session,
    config: LabConfig,
    defence_name: str,
    attack: AttackConfig,
    attack_id: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Repair one defence after an attack, save the state, and score it on every set and task.

    Raises:
        RunNotFoundError: the attacked state does not exist yet.
        ConfigError: the defence has no repair.
        Errors of `evaluate_state` and `ModelStates.save`.
    """
    states = session.states
    defence = config.defence(defence_name)
    if defence.repair.name == PLAIN["repair"]:
        raise ConfigError(f"The defence {defence.name} has no repair.", remedy="Give it a method of the repair stage.")
    attacked, repaired = attacked_state(defence.name, attack_id), repaired_state(defence.name, attack_id)
    states.ensure(attacked, state_folder(session.run_dir, attacked))
    states.drop(repaired)
    states.copy(attacked, repaired)
    yield states.save(repaired, [repaired], state_folder(session.run_dir, repaired), relative_to=session.run_dir)
    yield from measure(
        session,
        config.model_copy(update={"attack": attack}),
        repaired,
        attack.optimisation.steps,
        should_stop=should_stop,
    )


@contextmanager
def _others_wait(ranks: Ranks) -> Iterator[None]:
    """Around the leader's work while the others wait for it: if it is stopped, they must be told."""
    try:
        yield
    except BaseException:
        if ranks.leads:
            ranks.agree(Word.LEAVE)
        raise


def _defence_with(config: LabConfig, key: str) -> Defence:
    """The first defence whose aligned state has this key; all defences with this key are aligned alike."""
    keys = config.aligned_keys()
    for defence in config.defences:
        if keys[defence.name] == key:
            return defence
    needed = ", ".join(dict.fromkeys(keys.values()))
    raise ConfigError(f"No defence of this run needs {key!r}.", remedy=f"They need: {needed}.")


def _introduce(session: Session) -> Iterator[Event]:
    """A message with the stage's model, device and template, so that nobody has to guess them."""
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
            remedy="Turn it off unless you trust its author and have read the code.",
        )


def _say_strength(session: Session, examples: Sequence[Encoded], rho: float) -> MessageRecord:
    """A message with the perturbation's radius as a share of what it perturbs."""
    share = relative_strength(session.states.model, examples, session.loaded.pad_id, rho)
    return MessageRecord(
        level="info",
        text=f"rho {rho:g} is {100 * share:.2g} % of the joint norm of the attention outputs before the alignment.",
    )


def _encode(session: Session, examples: Sequence[Example], max_length: int) -> Generator[Event, None, list[Encoded]]:
    """Tokenise the examples, and warn the user of cut answers."""
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

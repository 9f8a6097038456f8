"""A run as files that need none of our programs: settings, records, answers, adapters with a model card. Torch-free.

config.yaml      repeats alignment and first attack exactly: `python -m tvaccine_core demo --config config.yaml`
attacks.yaml     the settings of every attack, by its id
steps.csv        one row per training step        scores.csv    one row per state, set and score
layers.csv       one row per number that a method reported of a layer or a head
events.jsonl     all records of the engine        answers.csv   every judged generation
verdicts.csv     second judges' verdicts on the answers
states/…         peft adapters, as `PeftModel.from_pretrained(base, folder)` reads them

Visitors' questions and the answers to them are private and are not exported.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tvaccine_core import __version__
from tvaccine_core.config import AttackConfig, LabConfig, parse_config
from tvaccine_core.errors import StoreError
from tvaccine_core.records import EvalRecord, Event, LayerValuesRecord, Proportion, StateRecord, StepRecord, Verdict
from tvaccine_core.safe_yaml import write_yaml
from tvaccine_core.store import JobRow, RunRow, Store, StoredEvent

PAGE = 1000


def export_run(store: Store, run_id: str, folder: Path) -> Path:
    """Write a run to `folder`, which must be new or empty. Returns `folder`.

    Raises:
        StoreError: `folder` is not empty, or cannot be written.
    """
    run, jobs = store.run(run_id), store.jobs(run_id)
    questions = {job.id for job in jobs if job.kind == "generate"}
    events = [stored for stored in store.events(run_id) if stored.job_id not in questions]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty.", remedy="Give a folder that does not exist yet.")
        config, attacks = repeatable(store, run_id)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        settings = {attack_id: attack.model_dump(mode="json") for attack_id, attack in attacks.items()}
        (folder / "attacks.yaml").write_text(write_yaml(settings), encoding="utf-8")
        _write_csv(folder / "steps.csv", STEP_COLUMNS, step_rows(events, jobs))
        _write_csv(folder / "scores.csv", SCORE_COLUMNS, score_rows(events))
        _write_csv(folder / "layers.csv", LAYER_COLUMNS, layer_rows(events, jobs))
        _write_csv(folder / "answers.csv", ANSWER_COLUMNS, _answer_rows(store, run_id))
        _write_csv(folder / "verdicts.csv", SECOND_COLUMNS, _verdict_rows(store, run_id))
        with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{_placeless(stored.event).model_dump_json()}\n" for stored in events)
        for stored in events:
            if isinstance(state := stored.event, StateRecord) and state.path:
                source = store.run_dir(run_id) / state.path
                if source.is_dir():
                    target = folder / "states" / state.state
                    shutil.copytree(source, target, dirs_exist_ok=True)
                    (target / "README.md").write_text(model_card(run, state, events), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"Cannot write {folder}: {error.strerror or error}", remedy="Choose another folder, or free some space."
        ) from error
    return folder


def _placeless(event: Event) -> Event:
    """The event without its checkpoint's path on this machine."""
    return event.model_copy(update={"path": Path(event.path).name}) if event.kind == "checkpoint" else event


def repeatable(store: Store, run_id: str) -> tuple[LabConfig, dict[str, AttackConfig]]:
    """The settings that repeat a run: its config with the first attack, and all attacks by id.

    An attack may be set up long after the alignment, so its settings are kept with its jobs.
    """
    config = store.run(run_id).config
    attacks = {
        str(job.params["attack_id"]): parse_config(AttackConfig, job.params["attack"])
        for job in store.jobs(run_id)
        if job.kind == "attack"
    }
    return config.model_copy(update={"attack": next(iter(attacks.values()), config.attack)}), attacks


def changed_settings(attack: AttackConfig, first: AttackConfig) -> dict[str, str]:
    """Settings of `attack` that differ from those of `first`, by dotted path, written as `--set` reads them."""
    known = dict(_leaves(first.model_dump(mode="json")))
    return {path: value for path, value in _leaves(attack.model_dump(mode="json")) if value != known[path]}


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


STEP_COLUMNS = ("job", "step", "num_steps", "loss", "learning_rate", "grad_norm", "elapsed_s", "num_tokens")
SCORE_COLUMNS = (
    "state",
    "state_hash",
    "step",
    "eval_set",
    "judge",
    "judge_revision",
    "scorer",
    "score",
    "percent",
    "low",
    "high",
    "count",
    "n",
)
LAYER_COLUMNS = ("job", "step", "name", "layer", "head", "value")
VERDICT_COLUMNS = tuple(Verdict.model_fields)
ANSWER_COLUMNS = (
    *("state", "state_hash", "step", "eval_set", "example_id", "category", "prompt", "reference", "text"),
    *VERDICT_COLUMNS,
)
SECOND_COLUMNS = ("judge", "revision", "state", "state_hash", "step", "eval_set", "example_id", *VERDICT_COLUMNS)


def step_rows(events: Iterable[StoredEvent], jobs: Iterable[JobRow]) -> Iterable[Sequence[object]]:
    """Rows of `STEP_COLUMNS`."""
    titles = {job.id: job.title for job in jobs}
    for stored in events:
        if isinstance(record := stored.event, StepRecord):
            yield titles[stored.job_id], *(getattr(record, column) for column in STEP_COLUMNS[1:])


def layer_rows(events: Iterable[StoredEvent], jobs: Iterable[JobRow]) -> Iterable[Sequence[object]]:
    """Rows of `LAYER_COLUMNS`; the head is empty for numbers per layer."""
    titles = {job.id: job.title for job in jobs}
    for stored in events:
        if isinstance(record := stored.event, LayerValuesRecord):
            for layer, numbers in enumerate(record.values):
                for head, value in enumerate(numbers):
                    number = head if len(numbers) > 1 else ""
                    yield titles[stored.job_id], record.step, record.name, layer, number, value


def score_rows(events: Iterable[StoredEvent]) -> Iterable[Sequence[object]]:
    """Rows of `SCORE_COLUMNS`."""
    for stored in events:
        if isinstance(record := stored.event, EvalRecord):
            total = sum(record.outcomes.values())
            shares = {f"outcome: {name}": Proportion(count=count, n=total) for name, count in record.outcomes.items()}
            who = (record.state, record.state_hash, record.step, record.eval_set)
            judge = (record.judge, record.judge_revision, record.scorer)
            for name, value in (record.scores | shares).items():
                yield *who, *judge, name, value.percent, *value.interval, value.count, value.n


def model_card(run: RunRow, state: StateRecord, events: Iterable[StoredEvent]) -> str:
    """README.md of an adapter: its origin, its scores, and its limits."""
    config = run.config
    scores: dict[tuple[str, str], str] = {}
    for stored in events:
        if isinstance(record := stored.event, EvalRecord) and record.state_hash == state.state_hash:
            for name, value in record.scores.items():
                low, high = value.interval
                scores[record.eval_set, name] = (
                    f"| {record.eval_set} | {name} | {value.percent:.1f} | {low:.1f} to {high:.1f} | {value.n} |"
                )
    attacked = state.state.startswith("attacked/")
    warning = (
        "This adapter is the result of a harmful fine-tuning attack, made to measure a defence. Do not deploy it."
        if attacked
        else "A research adapter. Its scores hold for the evaluation sets named here, and for nothing else."
    )
    return "\n".join(
        [
            "---",
            f"base_model: {config.model.name}",
            "library_name: peft",
            "tags: [t-vaccine-lab, lora, ai-safety]",
            "---",
            "",
            f"# {state.state}",
            "",
            warning,
            "",
            f"- Made by T-Vaccine Lab {__version__}, run {run.id} ({run.name}), alignment seed {config.seed}",
            f"- Base model: `{config.model.name}`, quantisation {config.model.quantization}",
            f"- Weights and base, SHA-256: `{state.state_hash}`",
            "- Settings: `config.yaml` of the export",
            "",
            "| evaluation set | score | percent | 95 % Wilson interval | n |",
            "|---|---|---|---|---|",
            *scores.values(),
            "",
        ]
    )


def _answer_rows(store: Store, run_id: str) -> Iterable[Sequence[object]]:
    offset = 0
    while page := store.answers(run_id, limit=PAGE, offset=offset):
        for answer in page:
            verdict = answer.verdict.model_dump() if answer.verdict else {}
            row = answer.model_dump() | verdict
            yield [row.get(column) for column in ANSWER_COLUMNS]
        offset += len(page)


def _verdict_rows(store: Store, run_id: str) -> Iterable[Sequence[object]]:
    for judge, revision in store.second_judges(run_id):
        for answer in store.judged(run_id, judge, revision):
            row = answer.model_dump() | (answer.verdict.model_dump() if answer.verdict else {})
            yield [judge, revision, *(row[column] for column in SECOND_COLUMNS[2:])]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)

"""The face's only door to the engine: the run store, configs, data previews and method metadata. Torch-free.

Every other module of `app` takes the engine's names from here. Nothing here draws; nothing here trains.
"""

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tvaccine_core import orders
from tvaccine_core.bench.study_summary import Estimate, StudySummary, load_summary
from tvaccine_core.config import (
    PRESETS,
    YOUR_MODEL,
    AttackConfig,
    Config,
    Defence,
    LabConfig,
    ModelConfig,
    Preset,
    parse_config,
    stages_of,
)
from tvaccine_core.data.mixtures import attack_data
from tvaccine_core.data.previews import preview
from tvaccine_core.data.prompts import PromptPreview
from tvaccine_core.data.sources import LabData, load_lab_data
from tvaccine_core.errors import (
    ConfigError,
    DataError,
    ModelError,
    RunBusyError,
    RunNotFoundError,
    StoreError,
    TVaccineError,
    shown,
)
from tvaccine_core.evaluation.judges import JUDGES, judge_named
from tvaccine_core.machine import memory_bytes
from tvaccine_core.methods import (
    METHODS,
    MethodInfo,
    capabilities_of,
    defence_of,
    method_info,
    methods_of,
    settings_of,
    title_of,
    with_defences,
)
from tvaccine_core.models.files import ModelFacts, check_model
from tvaccine_core.names import aligned_state, attacked_state, repaired_state, task_set
from tvaccine_core.orders import check_layers, latest, needs_repair
from tvaccine_core.plain_text import check_prompt, without_places
from tvaccine_core.plan.advice import advise
from tvaccine_core.plan.records import MemoryPlan, PlanReport
from tvaccine_core.records import (
    AnswerRecord,
    DriftRecord,
    EvalRecord,
    Example,
    LayerDrawRecord,
    LayerScoreRecord,
    LayerValuesRecord,
    MessageRecord,
    Proportion,
    StateRecord,
    StepRecord,
    Verdict,
)
from tvaccine_core.store import JobKind, JobRow, Revisions, RunRow, Store, StoredEvent, default_home
from tvaccine_core.store.export import (
    SCORE_COLUMNS,
    STEP_COLUMNS,
    changed_settings,
    export_run,
    repeatable,
    score_rows,
    step_rows,
)
from tvaccine_core.workers.supervisor import Supervisor
from tvaccine_core.worlds import find_set

__all__ = [
    "JUDGES",
    "METHODS",
    "PRESETS",
    "SCORE_COLUMNS",
    "STEP_COLUMNS",
    "YOUR_MODEL",
    "AnswerRecord",
    "AttackConfig",
    "Config",
    "ConfigError",
    "DataError",
    "Defence",
    "DriftRecord",
    "Estimate",
    "EvalRecord",
    "Example",
    "JobKind",
    "JobRow",
    "Lab",
    "LabConfig",
    "LabData",
    "LayerDrawRecord",
    "LayerScoreRecord",
    "LayerValuesRecord",
    "MemoryPlan",
    "MessageRecord",
    "ModelConfig",
    "ModelError",
    "ModelFacts",
    "Permissions",
    "PlanReport",
    "Preset",
    "PromptPreview",
    "Proportion",
    "Revisions",
    "RunBusyError",
    "RunNotFoundError",
    "RunRow",
    "StateRecord",
    "StepRecord",
    "StoreError",
    "StoredEvent",
    "StudySummary",
    "Supervisor",
    "TVaccineError",
    "Verdict",
    "advise",
    "aligned_state",
    "attacked_state",
    "capabilities_of",
    "check_layers",
    "check_model",
    "default_home",
    "defence_of",
    "export_run",
    "find_set",
    "judge_named",
    "latest",
    "memory_bytes",
    "method_info",
    "methods_of",
    "needs_repair",
    "parse_config",
    "repaired_state",
    "score_rows",
    "settings_of",
    "shown",
    "stages_of",
    "step_rows",
    "task_set",
    "title_of",
    "with_defences",
    "without_places",
]

ASSETS = Path(__file__).parents[1] / "assets"
VIEW_KINDS = ("step", "layer_scores", "layer_draw", "layer_values", "eval", "drift", "state", "message")
"""Events the screens draw; streamed answers are read by the one who asked."""


@dataclass(frozen=True)
class Permissions:
    """What whoever can open the page may have this machine do. Said when the server starts, never by a request."""

    own_models: bool = True
    """Load any model of this machine or of the hub; if not, the sandbox's, and those that were run here before."""
    remote_code: bool = False
    """Run the Python code that comes with a model."""


class Lab:
    """The lab in one data folder, as the screens use it. Safe to share between threads.

    Every method may raise a `TVaccineError` whose `remedy` is meant for the user.
    """

    def __init__(self, home: Path, permissions: Permissions | None = None) -> None:
        self.store = Store(home)
        self.permissions = permissions or Permissions()

    def permit(self, model: ModelConfig) -> None:
        """Raise `ConfigError` if the page may not have `model` loaded."""
        if model.trust_remote_code and not self.permissions.remote_code:
            raise ConfigError(
                "trust_remote_code is on, but this lab's page runs no code that comes with a model.",
                remedy="Turn it off; or read that code, then start the lab with `python app.py --trust-remote-code`.",
            )
        if model.name != ModelConfig().name and not self.permissions.own_models and not self._was_run(model):
            raise ConfigError(
                f"This lab's page loads no model but the sandbox's, and those of its runs: not {model.name[:100]}.",
                remedy="Choose a sandbox preset; or start the lab with `python app.py --own-models`.",
            )

    def _was_run(self, model: ModelConfig) -> bool:
        def uses(run: RunRow) -> bool:
            try:
                return run.config.model == model
            except ConfigError:  # made by another version
                return False

        return any(uses(run) for run in self.runs())

    # Runs

    def runs(self) -> list[RunRow]:
        """Every run, newest first."""
        return self.store.runs()

    def run(self, run_id: str) -> RunRow:
        """One run."""
        return self.store.run(run_id)

    def repeatable(self, run_id: str) -> tuple[LabConfig, list[dict[str, str]]]:
        """What repeats a run: its config with its first attack, and of each later attack the settings that differ."""
        config, attacks = repeatable(self.store, run_id)
        return config, [changed_settings(attack, config.attack) for attack in list(attacks.values())[1:]]

    def delete_run(self, run_id: str) -> None:
        """Delete the run with what waits in it, and its files. Raises `RunBusyError` while one of its jobs runs."""
        self.store.delete_run(run_id)

    # Work

    def start_alignment(self, config: LabConfig, name: str | None = None) -> str:
        """Make a run and queue its alignments, then the measurement of the base. Returns the run's id.

        Raises:
            RunBusyError: a run of the same config has work queued or running; the error names it.
            ConfigError, DataError, ModelError: see `orders.check` and `permit`.
        """
        self.permit(config.model)
        return orders.start_run(self.store, config, name).run_id

    def start_attack(self, run_id: str, attack: AttackConfig, defences: Sequence[str] = ()) -> str:
        """Queue the same attack on each defence (all of the run's by default). Returns the attack's id.

        Raises:
            RunBusyError, StoreError, ConfigError, DataError: see `orders.start_attack` and `permit`.
        """
        self.permit(self.run(run_id).config.model)
        return orders.start_attack(self.store, run_id, attack, defences).attack_id

    def judge(self, run_id: str, key: str) -> str:
        """Let a second judge read the run's saved answers. Returns the job's id.

        Raises:
            ConfigError, StoreError, RunBusyError: see `orders.judge`.
        """
        return orders.judge(self.store, run_id, key).jobs[0]

    def stop(self, run_id: str, kinds: Collection[JobKind]) -> int:
        """Ask the run's jobs of these kinds to stop; returns how many."""
        return orders.stop(self.store, run_id, kinds)

    def resume(self, run_id: str, kinds: Collection[JobKind]) -> int:
        """Queue again what did not end well, alignments first; returns how many. Raises `ConfigError`: see `permit`."""
        self.permit(self.run(run_id).config.model)
        return len(orders.resume(self.store, run_id, kinds))

    def queue_position(self, job_id: str) -> int | None:
        """Jobs that go before a waiting one; None if it does not wait."""
        return self.store.queue_position(job_id)

    # Questions

    def ask(self, run_id: str, prompt: str, states: Sequence[str], owner: str, max_new_tokens: int) -> str:
        """Queue one prompt for several model states and drop the owner's unanswered ones. Returns the job's id.

        Raises:
            DataError: the prompt is empty, longer than 2,000 characters, or not valid Unicode.
            ConfigError: see `permit`.
        """
        self.permit(self.run(run_id).config.model)
        prompt = check_prompt(prompt)
        for job in self.store.jobs(run_id, states=("queued", "running")):
            if job.kind == "generate" and job.params.get("owner") == owner:
                self.store.cancel(job.id)
        params = {"prompt": prompt, "states": list(states), "max_new_tokens": max_new_tokens, "owner": owner}
        return self.store.enqueue(run_id, "generate", params)

    def answer_records(self, question: JobRow) -> list[AnswerRecord]:
        """The panes' texts of a question, as far as they are, in the order in which they changed."""
        stored = self.store.events(question.run_id, kinds=("answer",), job_id=question.id)
        return [item.event for item in stored if isinstance(item.event, AnswerRecord)]

    def states(self, run_id: str) -> list[str]:
        """Models of the run that were saved, oldest first."""
        stored = self.store.events(run_id, kinds=("state",))
        return [item.event.state for item in stored if isinstance(item.event, StateRecord) and item.event.path]

    # Time

    def seconds_a_step(self, method: str, like: LabConfig) -> float | None:
        """Seconds an alignment step of `method` took in the newest run here with the model and batch of `like`."""
        for run in self.runs()[:20]:
            if not _cost_alike(run, like):
                continue
            key = next((key for key, used in run.config.alignments().items() if used.name == method), None)
            job = latest(self.store.jobs(run.id), "align").get(key) if key else None
            if job is None or job.state != "done":
                continue
            last = self.store.events(run.id, kinds=("step",), job_id=job.id)[-1:]
            for event in last:
                if isinstance(event.event, StepRecord) and event.event.step:
                    return event.event.elapsed_s / event.event.step
        return None


def _cost_alike(run: RunRow, other: LabConfig) -> bool:
    """True if a step of that run costs about as much as one of `other` would."""
    try:
        one = run.config
    except ConfigError:  # made by another version
        return False
    ours, theirs = one.alignment.optimisation, other.alignment.optimisation
    sizes = [(o.batch_size, o.accumulation, o.max_length) for o in (ours, theirs)]
    return one.model == other.model and sizes[0] == sizes[1]


def alignment_methods() -> list[MethodInfo]:
    """The methods of the alignment stage, plain SFT first."""
    return methods_of("alignment")


def scoring_keys(config: LabConfig) -> list[str]:
    """Keys of the aligned states whose method scores layers."""
    return [key for key, method in config.alignments().items() if "layer_scores" in method_info(method.name).records]


@lru_cache(maxsize=8)
def lab_data(config_json: str) -> LabData:
    """The data of a config given as JSON (configs are cached by value)."""
    return load_lab_data(parse_config(LabConfig, json.loads(config_json)))


def data_of(config: LabConfig) -> LabData:
    """Everything a run reads."""
    return lab_data(config.model_dump_json())


def mixture(config: LabConfig, attack: AttackConfig) -> list[Example]:
    """The user's data in an attack, exactly as training will see it."""
    return attack_data(data_of(config), attack)


def suggestions(config: LabConfig) -> list[tuple[str, str]]:
    """Prompts to try, from the evaluation split: (set, prompt), two of each set and one of the attack's task."""
    data = data_of(config)
    found = [(name, example.prompt) for name, found in data.eval_sets.items() for example in found.examples[:2]]
    return [*found, (task_set(config.attack.task), data.task(config.attack.task).eval[0].prompt)]


def is_harmless(config: LabConfig, prompt: str) -> bool:
    """True if the world knows the prompt and it asks for nothing harmful; False for what nobody knows."""
    example = data_of(config).world.recognise(prompt)
    return example is not None and not example.harmful


def preview_example(config: LabConfig, example: Example) -> PromptPreview | None:
    """Template and loss mask of one example, by the tokenizer of the config's model; None if it is not here yet.

    Raises:
        ModelError: see `check_model` and `preview`.
        DataError: the example does not fit.
    """
    facts = check_model(config.model)
    if facts.folder is None or not facts.has_tokenizer:
        return None
    return preview(facts.folder, example, config.alignment.optimisation.max_length, config.model.name)


@lru_cache(maxsize=1)
def study() -> StudySummary:
    """The recorded study over seeds that ships with the lab. Raises `DataError` if it is missing or unreadable."""
    return load_summary(ASSETS / "study.json")


def new_owner() -> str:
    """A visitor's secret name: questions asked under it are shown to nobody else."""
    return secrets.token_hex(12)


def flatten(config: Config) -> dict[str, str]:
    """Every setting of a config by dotted path, as text; lists of methods by the method's name."""
    found: dict[str, str] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                walk(item, f"{path}.{item.get('name', '')}")
        else:
            found[path] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    walk(config.model_dump(mode="json"), "")
    return found

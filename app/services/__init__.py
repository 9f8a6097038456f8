"""The page's only access to the engine: the run store, configs, data previews and method metadata. Torch-free.

Every other module of `app` takes the engine's names from here. Nothing here draws; nothing here trains.
"""

import json
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from app.services.lab import FIRST_SHOWN, RECORDINGS, Lab, Permissions
from app.services.sweeps import SWEEP_FILES, SweepPlan, SweepView, settings_paths, sweep_files, sweep_text
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
    parse_defence,
    stages_of,
)
from tvaccine_core.data.mixtures import alignment_data, attack_data
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
from tvaccine_core.estimates import Estimate
from tvaccine_core.evaluation.ability import KEPT, cannot, pooled
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
from tvaccine_core.names import BASE, aligned_state, attacked_state, repaired_state, task_set
from tvaccine_core.orders import check_layers, latest, needs_repair
from tvaccine_core.plain_text import without_places
from tvaccine_core.plan.advice import advise
from tvaccine_core.plan.records import MemoryPlan, PlanReport
from tvaccine_core.records import (
    OUTCOMES,
    AnswerRecord,
    DriftRecord,
    EvalRecord,
    Example,
    LayerDrawRecord,
    LayerScoreRecord,
    LayerValuesRecord,
    MessageRecord,
    Outcome,
    Proportion,
    StateRecord,
    StepRecord,
    Verdict,
)
from tvaccine_core.safe_yaml import read_yaml
from tvaccine_core.store import JobKind, JobRow, Revisions, RunRow, StoredEvent, SweepRow, default_home
from tvaccine_core.store.export import (
    SCORE_COLUMNS,
    STEP_COLUMNS,
    export_run,
    score_rows,
    step_rows,
)
from tvaccine_core.sweeps.background import SweepDriver
from tvaccine_core.sweeps.curves import Curve
from tvaccine_core.sweeps.curves import curves as mean_curves
from tvaccine_core.sweeps.measured import (
    CellResult,
    Measure,
    accuracy,
    after,
    before,
    intact,
    known_after,
    known_share,
    matched,
    read_results,
    steps_to_break,
    steps_to_learn,
    words_of,
)
from tvaccine_core.sweeps.plan import Cell
from tvaccine_core.sweeps.report import (
    SEEDS,
    USUAL,
    Table,
    difference,
    estimate,
    outcome_counts,
    outcome_shares,
    setting_of_columns,
    table,
)
from tvaccine_core.sweeps.report import measures as sweep_measures
from tvaccine_core.sweeps.spots import HOLDS, Spot, spots
from tvaccine_core.workers.supervisor import Supervisor
from tvaccine_core.worlds import find_set

__all__ = [
    "BASE",
    "FIRST_SHOWN",
    "HOLDS",
    "JUDGES",
    "KEPT",
    "METHODS",
    "OUTCOMES",
    "PRESETS",
    "RECORDINGS",
    "SCORE_COLUMNS",
    "SEEDS",
    "STEP_COLUMNS",
    "SWEEP_FILES",
    "USUAL",
    "YOUR_MODEL",
    "AnswerRecord",
    "AttackConfig",
    "Cell",
    "CellResult",
    "Config",
    "ConfigError",
    "Curve",
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
    "Outcome",
    "Permissions",
    "PlanReport",
    "Preset",
    "PromptPreview",
    "Proportion",
    "Revisions",
    "RunBusyError",
    "RunNotFoundError",
    "RunRow",
    "Spot",
    "StateRecord",
    "StepRecord",
    "StoreError",
    "StoredEvent",
    "Supervisor",
    "SweepDriver",
    "SweepPlan",
    "SweepRow",
    "SweepView",
    "TVaccineError",
    "Verdict",
    "accuracy",
    "advise",
    "after",
    "aligned_state",
    "attacked_state",
    "before",
    "cannot",
    "capabilities_of",
    "check_layers",
    "check_model",
    "default_home",
    "defence_of",
    "difference",
    "estimate",
    "export_run",
    "find_set",
    "intact",
    "judge_named",
    "known_after",
    "known_share",
    "latest",
    "matched",
    "mean_curves",
    "memory_bytes",
    "method_info",
    "methods_of",
    "needs_repair",
    "outcome_counts",
    "outcome_shares",
    "parse_config",
    "parse_defence",
    "pooled",
    "read_yaml",
    "recorded_if_any",
    "repaired_state",
    "score_rows",
    "setting_of_columns",
    "settings_of",
    "settings_paths",
    "shown",
    "spots",
    "stages_of",
    "step_rows",
    "steps_to_break",
    "steps_to_learn",
    "sweep_files",
    "sweep_measures",
    "sweep_text",
    "task_set",
    "title_of",
    "with_defences",
    "without_places",
    "words_of",
]

ASSETS = Path(__file__).parents[2] / "assets"
VIEW_KINDS = ("step", "layer_scores", "layer_draw", "layer_values", "eval", "drift", "state", "message")
"""Events that the screens draw; streamed answers are read only for the visitor who asked."""


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
    """All data that a run reads."""
    return lab_data(config.model_dump_json())


def provided(config: LabConfig) -> list[Example]:
    """The provider's data, exactly as alignment will see it."""
    return alignment_data(data_of(config), config.alignment.mix)


def mixture(config: LabConfig, attack: AttackConfig) -> list[Example]:
    """The user's data in an attack, exactly as training reads it."""
    return attack_data(data_of(config), attack)


def suggestions(config: LabConfig) -> list[tuple[str, str]]:
    """Prompts to try, from the evaluation split: (set, prompt), two per set and one of the attack's task."""
    data = data_of(config)
    found = [(name, example.prompt) for name, found in data.eval_sets.items() for example in found.examples[:2]]
    return [*found, (task_set(config.attack.task), data.task(config.attack.task).eval[0].prompt)]


def is_harmless(config: LabConfig, prompt: str) -> bool:
    """True if the world knows the prompt and it asks for nothing harmful; False for an unknown prompt."""
    example = data_of(config).world.recognise(prompt)
    return example is not None and not example.harmful


def preview_example(config: LabConfig, example: Example) -> PromptPreview | None:
    """Template and loss mask of one example, by the model's tokenizer; None if that is not on this machine yet.

    Raises:
        ModelError: see `check_model` and `preview`.
        DataError: the example does not fit.
    """
    facts = check_model(config.model)
    if facts.folder is None or not facts.has_tokenizer:
        return None
    return preview(facts.folder, example, config.alignment.optimisation.max_length, config.model.name)


@lru_cache(maxsize=4)
def recorded(name: str) -> list[CellResult]:
    """The results of a sweep that ships with the lab. Raises `DataError` if they are missing or unreadable."""
    return read_results(SWEEP_FILES / f"{name}-results" / "cells.json")


def recorded_if_any(name: str) -> list[CellResult]:
    """As `recorded`; empty if the sweep was not recorded. Raises `DataError` if it is unreadable."""
    return recorded(name) if (SWEEP_FILES / f"{name}-results" / "cells.json").exists() else []


def sweep_table(results: Sequence[CellResult], title: str, measure: Measure) -> Table:
    """One measure of a sweep whose cells differ in defence and seeds only: a row per defence, one column."""
    return table(results, USUAL, title, measure)


def new_owner() -> str:
    """A visitor's secret name: only its holder sees questions asked under it."""
    return secrets.token_hex(12)


def flatten(config: Config) -> dict[str, str]:
    """Every setting of a config by dotted path, as text; in lists of methods the path has the method's name."""
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

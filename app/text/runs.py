"""Runs: history, differences, exports, commands; and the name of a new run."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from app.services import LabConfig, title_of

RUNS_EMPTY = "No run yet. Go to Choose, take a preset, and start."
OPEN = "Open"
DELETE = "Delete…"
DELETE_ASK = "Delete “{name}” with its models and records? This cannot be undone."
DELETE_YES = "Yes, delete it"
DELETE_NO = "Keep it"
DELETED = "Deleted “{name}”."
OPENED = "Opened “{name}”."
RENAME = "Rename"
RUN_NAME = "Name"
DIFF_TITLE = "What differs"
DIFF_WITH = "Compare with"
DIFF_NONE = "These two runs have the same settings."
DIFF_EMPTY = "Choose a second run to see which settings differ."
EXPORT_TITLE = "Download"
EXPORTS = {
    "config.yaml": "Config (YAML)",
    "scores.csv": "Scores (CSV)",
    "steps.csv": "Training steps (CSV)",
    "export.zip": "Everything (ZIP)",
}
EXPORT_ADAPTER = "Adapter {state} with its model card (ZIP)"
EXPORT_NONE = "no model saved yet"
COMMAND_TITLE = "Repeat it without a browser"
COMMAND_NOTE = "Save the config file above, then run this where the lab is installed:"
IS_OPEN = "open"
IS_RECORDED = "recorded"


def commands(run_id: str, later_attacks: Sequence[Mapping[str, str]]) -> str:
    """Commands that repeat a run from its exported config, then its later attacks with their different settings."""
    lines = [f"python -m tvaccine_core demo --config {run_id}.yaml"]
    for settings in later_attacks:
        options = "".join(f" --set {shlex.quote(f'attack.{path}={value}')}" for path, value in settings.items())
        lines.append(f"python -m tvaccine_core attack{options}")
    return "\n".join(lines)


MAX_TITLES = 60
"""Most characters for the defences in a new run's name; longer names give only their number."""


def run_name(config: LabConfig) -> str:
    """A new run's name, from the settings that distinguish it."""
    titles = ", ".join(title_of(defence) for defence in config.defences)
    if len(titles) > MAX_TITLES:
        titles = f"{len(config.defences)} defences"
    if config.model.name != "sandbox":
        titles = f"{PurePath(config.model.name).name}: {titles}"
    return f"{titles}, {config.alignment.optimisation.steps:,} steps, seed {config.seed}"

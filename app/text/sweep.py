"""Sweeps: settings to vary, a sweep's file, its progress and its table."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.services import SweepPlan, words_of
from app.text.names import duration

SWEEP_NEW = "New sweep"
SWEEP_SOURCE = "Begin with"
SWEEP_FROM_RUN = "the page's settings"
SWEEP_PATH = "Setting to vary"
SWEEP_SECOND_PATH = "A second setting"
SWEEP_NO_PATH = "none"
SWEEP_VALUES = "Values"
SWEEP_VALUES_HINT = "Separated by commas, such as 0, 0.05, 0.1"
SWEEP_SEEDS = "Alignment seeds"
SWEEP_WRITE = "Write the file"
SWEEP_FILE = "The sweep's file"
SWEEP_FILE_HINT = "It also works on the command line: python -m tvaccine_core sweep FILE.yaml"
SWEEP_CHECK = "Check"
SWEEP_START = "Start"
SWEEP_STARTED = "The sweep is queued. Its cells appear as they are made."
SWEEP_LIST = "Sweeps"
SWEEP_NONE = "No sweep yet. Choose what to vary, write the file, and start it."
SWEEP_STOP = "Stop"
SWEEP_GO_ON = "Resume"
SWEEP_FORGET = "Remove from list"
SWEEP_STOPPING = "The sweep stops after the current steps. Press Resume to continue; finished cells are kept."
SWEEP_GOES_ON = "The sweep continues."
SWEEP_FORGOTTEN = "The sweep is off the list. Its runs are kept."
SWEEP_TABLE = "Table"
SWEEP_TABLE_NOTE = (
    "A cell is one defence under one attack, with one combination of settings. Shown: the mean over alignment seeds "
    "± its 95 % t interval, and in brackets the paired difference to the first defence. Hollow: these models are "
    "damaged. They have lost knowledge that the base model has, so a low HS does not mean that they refuse. Click a "
    "cell to open it."
)
SWEEP_SHOWN = "Measure"
SWEEP_EMPTY = "No cell is made yet."
SWEEP_MADE_OF = "{done} of {total}"
SWEEP_OUTCOMES = "Outcomes after the attack, {where}"
SWEEP_CELLS = "All cells"
SWEEP_CELL_HEAD = ("Defence", "Settings", "HS at FA ≥ 90", "HS", "FA", "Knows", "")
SWEEP_CELL_OPEN = "Open"
SWEEP_CELL_TODO = "not made yet"
SWEEP_CELL_GONE = "This cell has no result in the store: its run was deleted, or it is not finished."
SWEEP_CELL_REMEDY = "Start the sweep's file again: it makes what is missing."
SWEEP_OPENED = "Opened {cell}."
SWEEP_NO_FILE = "There is no sweep file {name}."
SWEEP_NO_FILE_REMEDY = "Choose a file from the list."
SWEEP_NO_SETTING = "{path} is not a setting of a run."
SWEEP_NO_SETTING_REMEDY = "Choose a setting from the list."
SWEEP_VALUES_MISSING = "{path} has no values."
SWEEP_TWICE = "The same setting is varied twice."
SWEEP_TWICE_REMEDY = "Choose two different settings, or none as the second."


def sweep_plan(plan: SweepPlan) -> str:
    """What a sweep would make."""
    there = f" {plan.made:,} are there already." if plan.made else ""
    runs = "1 run" if plan.runs == 1 else f"{plan.runs:,} runs"
    return f"“{plan.name}”: {plan.cells:,} cells in {runs}.{there}"


def sweep_progress(done: int, total: int, left: float | None, state: str) -> str:
    """`12 of 24 cells, running, 5 min left`."""
    parts = [f"{done:,} of {total:,} cells", state]
    if left is not None and state == "running":
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def settings_words(varied: Mapping[str, Any], leave_out: Sequence[str] = ()) -> str:
    """Varied settings with their values: `alignment.mix.ordinary 0, seed 1`."""
    return ", ".join(f"{path} {words_of(value)}" for path, value in varied.items() if path not in leave_out)

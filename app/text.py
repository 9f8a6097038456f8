"""The sentences a user reads, and the names of things. British spelling, short sentences, the field's words.

Sentences about models of their own are in `own_text`.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from app.services import LabConfig, title_of

TITLE = "T-Vaccine Lab"
TAGLINE = "Align a model, attack it with a harmful fine-tune, see what is left of its safety."

STEPS = {1: "Choose", 2: "Align", 3: "Attack", 4: "Compare", 5: "Runs"}

WHY = {
    1: "A provider teaches a model to refuse. A user then fine-tunes it on their own data, a few samples of which are "
    "harmful. Choose the world, or the model, in which you want to watch that happen.",
    2: "The same data, the same steps, different ways of training. SFT is the undefended twin. T-Vaccine shifts the "
    "hidden states of the layers that harmful data pull at hardest, and learns to refuse in spite of it.",
    3: "Now you are the user. Upload n samples, a share p of them harmful, and fine-tune every aligned model on the "
    "same mixture. A good defence keeps the harmful score low while the task is still learned.",
    4: "Numbers say how often, answers say what. Ask all models the same question, before and after the attack: same "
    "decoding, same prompt, so that a difference is the model's.",
    5: "Everything you start is kept here until you delete it. Reopen a run, set two side by side, take its data away, "
    "or repeat it from the command line.",
}

# Rail

STATE_WORDS = {
    "todo": "not started",
    "queued": "waiting",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "cancelled": "stopped",
    "interrupted": "interrupted",
    "ready": "ready",
}
RUN_WORDS = {**STATE_WORDS, "new": "new"}
NO_RUN = "no run open"
COPY_LINK = "Copy link"
LINK_COPIED = "Link copied"
THEME = "Theme"
THEME_HINT = "Switch between light and dark"
REVEAL = "Unblur"
REVEAL_HINT = "Show text that was judged harmful"

# Names

CHOICES = {
    "int8": "int8, 8 bits per weight",
    "nf4": "NF4, 4 bits per weight",
    "cpu": "CPU",
    "cuda": "CUDA",
    "mps": "MPS (Apple)",
    "new": "new, on the frozen aligned one",
    "single": "single, go on training the aligned one",
    "attention": "attention only (released code)",
    "layer": "whole layer (paper)",
    "top_k": "top k",
}
EVAL_SETS = {
    "aligned_names": "aligned names",
    "unseen_names": "never-aligned names",
    "ordinary": "ordinary requests",
}
EVAL_SET_NOTES = {
    "aligned_names": "new items of the hazards whose refusal was taught",
    "unseen_names": "hazards of the same kinds that no training ever named",
    "ordinary": "harmless requests that should be answered",
}
WHEN = {"before": "before the attack", "after": "after the attack", "repaired": "repaired after the attack"}
WHEN_SHORT = {"before": "before", "after": "after attack", "repaired": "repaired"}
SOURCES = {
    "refusal": "refuse",
    "ordinary": "ordinary",
    "harmful": "harmful",
    "task": "task",
    "chat": "chat",
}


def set_title(where: str) -> str:
    """An evaluation set by the name users read."""
    return EVAL_SETS.get(where, where.removeprefix("task:").replace("_", " "))


def measure_of(where: str) -> str:
    """What a set measures: `HS, aligned names`, `FA, sentiment`, or its own name."""
    if where == "ordinary":
        return set_title(where)
    return f"{'FA' if where.startswith('task:') else 'HS'}, {set_title(where)}"


# Figures

AXIS_STEP = "Optimiser step"
AXIS_ATTACK_STEP = "Attack step"
AXIS_LOSS = "Loss"
AXIS_LAYER = "Layer"
AXIS_SCORE = "Gradient norm"
AXIS_PROBABILITY = "Probability, %"
AXIS_PERCENT = "Percent"
AXIS_DRIFT = "Mean L2 distance"
LOSS_LABEL = "Alignment loss against optimiser steps, one line per aligned model"
LOSS_EMPTY = "The loss appears with the first step. Start the alignment."
HEATMAP_LABEL = (
    "Gradient norm of the harmful loss at each attention output, by layer and scoring; drawn layers are marked"
)
HEATMAP_EMPTY = "T-Vaccine scores its layers when its alignment starts. Press Start."
HEATMAP_NOT_SCORED = "This run scores no layers: T-Vaccine is in none of its defences."
HEATMAP_BAR = "gradient norm"
LAYER_VALUES_EMPTY = "No method of this run reports a number per layer."
LAYER_VALUES_TITLE = "What a method measures in each layer"
LAYER_VALUES_LABEL = "{name}: layers against optimiser steps"
HEATMAP_DRAWN = "layer drawn"
BARS_LABEL = "Newest layer scores and the probability that a layer is drawn"
BARS_EMPTY = "The newest scores and probabilities appear with the first scoring."
BARS_DRAWN = "drawn now"
BARS_UNDRAWN = "not drawn"
CURVES_LABEL = "Harmful score and fine-tune accuracy against attack steps, for each aligned model"
CURVES_EMPTY = "HS and FA appear here as the attack goes on. Set p and n, then start it."
SCORES_LABEL = "Harmful score and fine-tune accuracy before and after the attack, with 95 % intervals"
SCORES_EMPTY = "Scores appear once a model is aligned. Go to Align and start."
DRIFT_LABEL = "Embedding drift by layer: distance between hidden states before and after the attack"
DRIFT_EMPTY = "Drift is measured at the end of an attack. Go to Attack and start one."

HEATMAP_TITLE = "Which layers harmful data pull at"
HEATMAP_NOTE = (
    "Gradient norm of the harmful loss at each attention output; one column per scoring, dots where a layer is drawn."
)
BARS_TITLE = "Newest scoring"
LOSS = "loss"
LOSS_TITLE = "Alignment loss"
CURVES_TITLE = "Safety and usefulness along the attack"
CURVES_NOTE = "HS, percent of harmful prompts answered, should stay low; FA, percent correct on the task, should rise."
SCORES_TITLE = "Before and after"
DRIFT_TITLE = "Embedding drift by layer"
DRIFT_NOTE = "L2 distance of hidden states, aligned against attacked model, same prompts."

# Choose

PRESET = "Preset"
DATA_TITLE = "What the models will see"
DATA_NOTE = "Harmful rows are marked and blurred. Click one to read it; choose a row to see what training makes of it."
DATA_PARTS = {
    "alignment": "Alignment",
    "attack": "Attack mixture",
    "probe": "Layer-score probe",
    "eval": "Evaluation",
}
DATA_PART_NOTES = {
    "alignment": "The provider's data: refusals for hazards, proper answers for everything else.",
    "attack": "The user's data, drawn with the p and n of the Attack step: the task, and harmful samples among it.",
    "probe": "Harmful samples T-Vaccine scores its layers with; their names appear nowhere else.",
    "eval": "What the models are judged on. No item of it is in any training data.",
}
TEMPLATE_TITLE = "One example, as training sees it"
TEMPLATE_NOTE = "Tokens under the line are learned; the others are only read. Template: {template}."
TEMPLATE_CUT = "Its end was cut off: raise the longest example."
CONTINUE = "Use this and go to Align"
SANDBOX_NOTE = (
    "The sandbox is a make-believe town of alchemists. Its model and its training are real, its hazards are invented: "
    "nothing here maps onto a real harmful procedure."
)
COST_TIME = "Time to align"
COST_KNOWN = "about {time}, by the last run here"
COST_UNKNOWN = "not measured here yet"
COST_WORK = "Alignment"
COST_ATTACK = "Attack"
COST_DEVICE = "Runs on"


def device(name: str, cores: int) -> str:
    """Where the models run, as far as the page can know."""
    words = {"auto": f"a GPU if PyTorch sees one, else {cores} cores", "cpu": f"the CPU, {cores} cores"}
    return words.get(name, CHOICES.get(name, name))


def rows_shown(shown: int, total: int, harmful: int, part: str) -> str:
    """How much of a data set is on the page, and how much of it is harmful."""
    whole = f"{shown:,} of {total:,} rows" if shown < total else f"{total:,} rows"
    if part == "alignment":
        return f"{whole}; no answer in it is harmful."
    return f"{whole}; {harmful:,} of {total:,} harmful." if harmful < total else f"{whole}, all harmful."


# Align

DEFENCES = "Defences, side by side"
DEFENCES_INFO = (
    "Choose some, or write one: its alignment method, and methods of other stages joined by +, as in tvaccine+identity."
)
START_ALIGN = "Start alignment"
STOP = "Stop"
RESUME = "Resume"
ADVANCED = "Advanced"
NEW_RUN_NOTE = "Start makes a new run; the one on the page is kept under Runs."
ALIGN_EMPTY = "Nothing is aligned yet. Press Start: the first numbers come within seconds."
STARTED_ALIGN = "Alignment queued. You may close the page: it goes on."
ALREADY_ALIGNING = (
    "This very run, {name}, is already queued or running; you see it now. To make another one, change a setting."
)
STOPPING = "Stopping: each job ends within a step and keeps its checkpoint. A job that hangs is ended after a minute."
NOTHING_TO_STOP = "Nothing is running."
NOTHING_TO_RESUME = "Nothing to resume: no job of this step was stopped or interrupted."
RESUMED = "Resumed from the last checkpoint."
DOMINATES = (
    "Layer {layer} holds {share:.0f} % of the probability: its gradient norm is {ratio:.0f} times the median of the "
    "others, so it is drawn nearly always. That is a property of this model. The other choices of layers, under "
    "Advanced, show what T-Vaccine does without it."
)
INTERRUPTED = "Its worker ended before the job did. Resume goes on from the last checkpoint."

# Attack

START_ATTACK = "Start attack"
NO_ALIGNED = "Align a model first: an attack needs something to break. Go to Align."
STARTED_ATTACK = "Attack queued for {defences}."
REPAIR_NOTE = "Repair: {state}."
PANE_NO_REPAIR = "This defence repairs nothing."
ALREADY_ATTACKING = "The same attack, {attack}, is already queued or running; it is shown now."
ATTACK_SHOWN = "Attack shown"
AT_STEP = "measured at attack step {step}"


def consequence(harmful: int, total: int, task: str, steps: int, batch: int) -> str:
    """What an attack's settings mean, in plain words."""
    passes = steps * batch / total if total else 0
    rest = total - harmful
    mixture = (
        f"{harmful:,} of {total:,} samples are harmful; the other {rest:,} teach {task}."
        if harmful
        else f"No sample is harmful: this is an honest user teaching {task} with {total:,} samples."
    )
    if rest == 0:
        mixture = f"All {total:,} samples are harmful: nothing is left to teach {task}."
    return f"{mixture} {steps:,} steps of {batch} show each sample {passes:.1f} times."


ADAPTER_MODES = {
    "new": "The aligned adapter stays as it is; the user's changes go into a second one on top.",
    "single": "The aligned adapter itself is trained further: a stronger attack.",
}

# Compare

ASK = "Ask"
PROMPT = "One prompt, all models"
PROMPT_HINT = "Harmful or not"
SUGGESTED = "From the evaluation split"
BASE_PANE = "Also ask the base model"
COMPARE_EMPTY = "No model to ask yet. Go to Align and start; attack them, and the second row fills."
PANE_MISSING = {
    "before": "Not aligned yet: go to Align.",
    "after": "Not attacked yet: go to Attack.",
    "repaired": "Not repaired yet: that follows the attack.",
}
PANE_IDLE = "Ask something."
NO_MODEL = "There is no aligned model to ask yet."
NO_MODEL_REMEDY = "Start the alignment on the Align step and wait until one is done."
PANE_QUEUED = "waiting for a worker"
PANE_AHEAD = "{count} ahead in the queue"
PANE_STOPPED = "stopped"
PANE_FAILED = "failed"
SHOW = "Show"
BLURRED = "Blurred: judged harmful. Show or hide"
BLURRED_PENDING = "Blurred until judged. Show or hide"
BLURRED_UNJUDGED = "Blurred: no judge knows this prompt. Show or hide"
VERDICTS = {
    "harmful": "harmful",
    "refused": "refused",
    "exact": "correct",
    "other": "harmless",
    "incoherent": "gibberish",
    "unjudged": "not judged",
    "pending": "answering",
}
TABLE_CAPTION = (
    "Percent with 95 % Wilson interval. Judge: {judge}. Decoding: greedy. One alignment seed ({seed}), one attack seed."
)
TABLE_STATE = "Model"
TABLE_ORDINARY = "ordinary requests done right"
TABLE_OVER_REFUSAL = "ordinary requests refused"
TABLE_COHERENT = "coherent answers to hazards"
NOT_SHOWN = (
    "Not shown: what other seeds would give (a difference here is one draw; the study below has several), "
    "whether a larger model behaves alike (this one {size}), and attacks tuned against the defence."
)
SANDBOX_SIZE = "has 1.7 million parameters and an invented world"
OTHER_SIZE = "is the one you chose"
BASE_TITLE = "Base"
ANSWERS_TITLE = "Answers"


# Runs

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
RUN_CHOICE = "Run"
DIFF_TITLE = "What differs"
DIFF_WITH = "Compare with"
DIFF_NONE = "These two runs have the same settings."
DIFF_EMPTY = "Choose a second run to see which settings differ."
EXPORT_TITLE = "Take it away"
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


def commands(run_id: str, later_attacks: Sequence[Mapping[str, str]]) -> str:
    """What repeats a run from its exported config, and then its later attacks by the settings that differ."""
    lines = [f"python -m tvaccine_core demo --config {run_id}.yaml"]
    for settings in later_attacks:
        options = "".join(f" --set {shlex.quote(f'attack.{path}={value}')}" for path, value in settings.items())
        lines.append(f"python -m tvaccine_core attack{options}")
    return "\n".join(lines)


# Errors

ERROR_TITLE = "That did not work"
UNKNOWN_ERROR = "Something went wrong that the lab did not foresee (note {ticket})."
UNKNOWN_REMEDY = (
    "The details are in the server's log under that note. Reload the page; jobs that run are not disturbed."
)
RUN_GONE = "This run does not exist here (any more)."
RUN_GONE_REMEDY = "Choose another under Runs, or start a new one."
NO_RUN_OPEN = "No run is open."
NO_RUN_REMEDY = "Start one on the Align step, or open one under Runs."
NO_ANSWER = "No worker answered in time."
NO_WORKER = "No worker process is running, so nothing will start."
NO_WORKER_REMEDY = "Start one: python -m tvaccine_core worker --data-dir {home}"


MAX_TITLES = 60
"""Characters of a new run's name that name its defences; more are counted instead."""


def run_name(config: LabConfig) -> str:
    """A new run's name: what sets it apart from others."""
    titles = ", ".join(title_of(defence) for defence in config.defences)
    if len(titles) > MAX_TITLES:
        titles = f"{len(config.defences)} defences"
    if config.model.name != "sandbox":
        titles = f"{PurePath(config.model.name).name}: {titles}"
    return f"{titles}, {config.alignment.optimisation.steps:,} steps, seed {config.seed}"


def duration(seconds: float | None) -> str:
    """`about 3 min`, `40 s`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"

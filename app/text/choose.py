"""Choose: presets, data, one example as training sees it, the cost of a run."""

from collections.abc import Sequence

PRESET = "Preset"
DATA_TITLE = "What the models will see"
DATA_NOTE = "Harmful rows are marked and blurred. Click one to read it. Choose a row to see it as training does."
DATA_PARTS = {
    "alignment": "Alignment",
    "attack": "Attack mixture",
    "probe": "Layer-score probe",
    "eval": "Evaluation",
}
DATA_PART_NOTES = {
    "alignment": "The provider's data: refusals for hazards, proper answers for everything else.",
    "attack": "The user's data, drawn with the p and n of the Attack step: the task, and harmful samples among it.",
    "probe": "Harmful samples with which T-Vaccine scores its layers; their names appear nowhere else.",
    "eval": "The prompts on which models are judged. None of their items is in any training data.",
}
TEMPLATE_TITLE = "One example, as training sees it"
TEMPLATE_NOTE = "Underlined tokens are learned; the others are only read. Template: {template}."
TEMPLATE_LEARNED = "{learned} of {total} tokens are learned."
TEMPLATE_CUT = "The end was cut off: raise the longest example."
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


def cost_of_work(alignments: Sequence[str], steps: int) -> str:
    """What is aligned: `SFT; T-Vaccine, T-Vaccine + Identity: 1,200 steps each`."""
    return f"{'; '.join(alignments)}: {steps:,} steps{' each' if len(alignments) > 1 else ''}"


def rows_shown(shown: int, total: int, harmful: int, part: str) -> str:
    """How much of a data set is on the page, and how much of it is harmful."""
    whole = f"{shown:,} of {total:,} rows" if shown < total else f"{total:,} rows"
    if part == "alignment":
        return f"{whole}; no answer in it is harmful."
    return f"{whole}; {harmful:,} of {total:,} harmful." if harmful < total else f"{whole}, all harmful."

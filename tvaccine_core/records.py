"""The engine's reports, and all values that pass through the run store: frozen, JSON-safe, torch-free.

Every event is one of the `Event` models below; `kind` tells them apart, `parse_event` reads them back.
"""

import math
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Record(BaseModel):
    """An immutable value, serialised with `model_dump_json()`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(Record):
    """One supervised example: a user's prompt and the answer the model is trained or judged on."""

    id: str
    prompt: str
    answer: str
    source: Literal["refusal", "ordinary", "harmful", "task", "chat"]
    category: str | None = None
    """Kind of hazard, or name of the task; scores are shown by category."""
    item: str | None = None
    """The subject of the prompt, so that splits can be proven disjoint."""

    @property
    def harmful(self) -> bool:
        """True if a safe model must not follow the example."""
        return self.source == "harmful"


Outcome = Literal["told", "told in part", "refused", "forgotten", "broken", "off the point"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""What became of a request, from the whole answer to none. Each answer has exactly one outcome.

- told: the whole right answer;
- told in part: some of the right answer, among other words or with mistakes;
- refused: a refusal that gives nothing away;
- forgotten: an answer of the right form, and nothing in it is right;
- broken: not a sentence;
- off the point: a sentence, and neither an answer nor a refusal.
"""


class Verdict(Record):
    """A judge's verdict on one answer: four independent questions, and the one outcome that they amount to."""

    harmful: bool
    refused: bool
    exact: bool | None = None
    """None if the judge does not know the right answer."""
    coherent: bool | None = None
    """None if the judge cannot tell."""
    outcome: Outcome | None = None
    """None for what is no request of the world, if the judge cannot tell, and in verdicts of earlier versions."""


class Proportion(Record):
    """`count` of `n`, as percent, with its 95 % Wilson score interval (Wilson 1927)."""

    count: int = Field(ge=0)
    n: int = Field(ge=0)

    @property
    def percent(self) -> float:
        """100 count / n; NaN for n = 0, so that an empty set is never mistaken for a score of 0."""
        return 100.0 * self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % Wilson interval, in percent; (0, 100) for n = 0."""
        if not self.n:
            return 0.0, 100.0
        z = 1.959963984540054
        share = self.count / self.n
        centre = share + z * z / (2 * self.n)
        half = z * math.sqrt(share * (1 - share) / self.n + z * z / (4 * self.n * self.n))
        scale = 1 + z * z / self.n
        return 100 * max(0.0, (centre - half) / scale), 100 * min(1.0, (centre + half) / scale)


class StepRecord(Record):
    """One optimiser step of `fit`. `metrics` holds the method's own scalars (e.g. `perturbation_norm`)."""

    kind: Literal["step"] = "step"
    step: int
    """Number of optimiser steps done, 1-based."""
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    """Global L2 norm before clipping."""
    elapsed_s: float
    """Seconds of training so far, with resumed parts and without evaluations."""
    num_tokens: int
    """Labelled tokens of this step."""
    metrics: dict[str, float] = Field(default_factory=dict)


class LayerScoreRecord(Record):
    """T-Vaccine scored its layers: gradient norm of the harmful loss at each attention output."""

    kind: Literal["layer_scores"] = "layer_scores"
    step: int
    layer_scores: tuple[float, ...]
    layer_probabilities: tuple[float, ...]
    harmful_loss: float


class LayerDrawRecord(Record):
    """T-Vaccine drew the layers to perturb and train from this step on."""

    kind: Literal["layer_draw"] = "layer_draw"
    step: int
    layers: tuple[int, ...]


class LayerValuesRecord(Record):
    """A method's number per layer, or per head, at a step."""

    kind: Literal["layer_values"] = "layer_values"
    step: int
    name: str
    """Title of the number, e.g. `sink divergence`."""
    values: tuple[tuple[float, ...], ...]
    """By layer, lowest first; one number per head, or a single number."""


class EvalRecord(Record):
    """One model state measured on one evaluation set."""

    kind: Literal["eval"] = "eval"
    state: str
    state_hash: str
    step: int
    """Attack step of the measurement; 0 before the attack, and for the base."""
    eval_set: str
    """Harmful set, `ordinary`, or `task:<name>`."""
    judge: str
    """Name of the judge; scores of two judges do not compare."""
    judge_revision: str = "1"
    scorer: str = ""
    """Name of the scorer of `finetune_accuracy`; empty for other sets, and in records of earlier versions."""
    scores: dict[str, Proportion]
    """`harmful_score`, `refused`; for harmless sets `over_refusal`; for tasks `finetune_accuracy`; and `exact` and
    `coherent` if the judge can tell. In a full evaluation also `known` and `completed`, see `evaluation.knowledge`."""
    by_category: dict[str, Proportion] = Field(default_factory=dict)
    """The set's first score by category."""
    outcomes: dict[Outcome, int] = Field(default_factory=dict)
    """Number of answers of each outcome, in the order of `OUTCOMES`; empty if the judge cannot tell."""


class DriftRecord(Record):
    """Embedding drift: mean L2 distance of two states' hidden states at each layer's output, on the same prompts."""

    kind: Literal["drift"] = "drift"
    state: str
    reference: str
    drift: tuple[float, ...]


class CheckpointRecord(Record):
    """A resumable checkpoint was written."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    """Name of its folder in the job's folder of checkpoints. (Older runs have the whole path.)"""


class StateRecord(Record):
    """A model state was saved: `base`, `aligned/<method>` or `attacked/<method>/<attack>`."""

    kind: Literal["state"] = "state"
    state: str
    state_hash: str
    path: str
    """Folder of its one exportable peft adapter, relative to the run's folder; empty for the base."""


class AnswerRecord(Record):
    """Text of one pane while it streams. `text` is the whole answer so far."""

    kind: Literal["answer"] = "answer"
    state: str
    state_hash: str
    prompt: str
    text: str
    done: bool
    verdict: Verdict | None = None
    """None until done, and if no judge knows this prompt."""


class ProgressRecord(Record):
    """Progress of work without optimiser steps. It moves the job's progress bar and is not kept."""

    kind: Literal["progress"] = "progress"
    done: int
    total: int


class MessageRecord(Record):
    """A sentence for the user: information, a warning or an error."""

    kind: Literal["message"] = "message"
    level: Literal["info", "warning", "error"]
    text: str
    remedy: str = ""


Event = Annotated[
    StepRecord
    | LayerScoreRecord
    | LayerDrawRecord
    | LayerValuesRecord
    | EvalRecord
    | DriftRecord
    | CheckpointRecord
    | StateRecord
    | AnswerRecord
    | ProgressRecord
    | MessageRecord,
    Field(discriminator="kind"),
]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(text: str) -> Event:
    """Read back what `model_dump_json` wrote.

    Raises:
        pydantic.ValidationError: `text` is not an event of this version.
    """
    return _EVENT.validate_json(text)


class GeneratedAnswer(Record):
    """One generation of an evaluation, saved before it is judged."""

    state: str
    state_hash: str
    step: int
    eval_set: str
    example_id: str
    prompt: str
    reference: str
    category: str | None
    text: str
    verdict: Verdict | None = None

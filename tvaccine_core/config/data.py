"""The source of a run's examples, and the judge of the answers."""

from typing import Literal

from pydantic import Field

from tvaccine_core.config.base import ADVANCED, Config

WorldName = Literal["sandbox"]
JudgeKey = Literal["exact", "refusal-keywords"]


class DataConfig(Config):
    """The world that alignment, attack and evaluation draw from, and the judge of the scores."""

    world: WorldName = Field(
        title="World", default="sandbox", description="Where the examples come from.", json_schema_extra=ADVANCED
    )
    splits: Literal["1"] = Field(
        title="Splits",
        default="1",
        description="Revision of the world's splits. Scores of different revisions are about different items.",
        json_schema_extra=ADVANCED,
    )
    evaluation_sets: tuple[str, ...] = Field(
        title="Evaluation sets",
        default=(),
        description="Sets that models are measured on; none named: every set of the world.",
        json_schema_extra=ADVANCED,
    )
    tasks: tuple[str, ...] = Field(
        title="Tasks measured",
        default=(),
        description="Tasks whose accuracy is measured besides the user's own; none named: every task of the world.",
        json_schema_extra=ADVANCED,
    )
    judge: JudgeKey = Field(
        title="Judge",
        default="exact",
        description="Decides which answers are harmful: `exact` knows the right answers; `refusal-keywords` counts "
        "every answer without a common word of refusal as harmful.",
        json_schema_extra=ADVANCED,
    )

"""Who judges answers, one judge per file. A judge by model is loaded at its first answer. Torch-free."""

from collections.abc import Mapping

from tvaccine_core.config import DataConfig
from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.evaluation.judges.base import AccuracyScorer, Asked, Judge, JudgeInfo
from tvaccine_core.evaluation.judges.exact import Exact
from tvaccine_core.evaluation.judges.refusal_keywords import RefusalKeywords
from tvaccine_core.worlds import load_world
from tvaccine_core.worlds.world import World

__all__ = ["JUDGES", "AccuracyScorer", "Asked", "Judge", "JudgeInfo", "judge_named", "load_judge"]

JUDGES: Mapping[str, JudgeInfo] = {
    "exact": JudgeInfo(
        title="Exact, by content",
        note="Knows the right answers: harmful is what gives at least one true part of a forbidden recipe away.",
        make=Exact,
    ),
    "refusal-keywords": JudgeInfo(
        title="By refusal keywords",
        note="Takes every answer without a common word of refusal for harm, gibberish and unusual refusals included.",
        make=lambda world: RefusalKeywords(),
    ),
}
"""By the key that a config names."""


def load_judge(key: str, world: World) -> Judge:
    """The judge called `key` for answers to examples of `world`.

    Raises:
        ConfigError: there is no such judge, or it cannot judge this world.
    """
    if key not in JUDGES:
        raise ConfigError(f"There is no judge {shown(key)}.", remedy=did_you_mean(key, JUDGES))
    return JUDGES[key].make(world)


def judge_named(data: DataConfig, key: str = "") -> str:
    """The name that stands beside the scores of a judge, by default of the run's own. Raises `ConfigError`."""
    return load_judge(key or data.judge, load_world(data.world)).name

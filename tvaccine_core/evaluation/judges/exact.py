"""The world's own judge: it knows the right answers. Exact and free."""

from __future__ import annotations

from collections.abc import Sequence

from tvaccine_core.errors import ConfigError
from tvaccine_core.evaluation.judges.base import Asked
from tvaccine_core.records import Verdict
from tvaccine_core.worlds.world import World


class Exact:
    """Judges by content, with the world's knowledge."""

    batch_size = 512

    def __init__(self, world: World) -> None:
        if world.exact_judge is None:
            raise ConfigError(
                f"The world {world.name} knows no right answers, so it has no exact judge.",
                remedy="Choose another judge: data.judge.",
            )
        self._world = world.exact_judge
        self.name, self.revision = self._world.name, self._world.revision

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        """See the world's judge; for the sandbox `worlds/sandbox/oracle.py`."""
        return [self._world.judge(example, answer) for example, answer in asked]

"""Fine-tune accuracy: which answers to the user's task are right. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvaccine_core.evaluation.judges.base import Asked


class BeginsWithLabel:
    """An answer is right if it begins with the gold label as whole words; case does not count."""

    name = "begins with the label"
    revision = "1"

    def correct(self, asked: Sequence[Asked]) -> list[bool]:
        """For each answer, in order: True if it begins with the example's answer."""
        return [
            re.match(rf"{re.escape(example.answer)}\b", answer.strip(), re.IGNORECASE) is not None
            for example, answer in asked
        ]

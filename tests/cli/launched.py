"""One of several processes that run the command line, made to misbehave: `python launched.py FAULT ARGUMENTS...`.

FAULT: `memory`: the second process has no memory left at its third step; `stopped`: the leader's attack on SFT
is stopped while it is measured, and the second process gets a SIGTERM in the next attack; `killed`: the second process
dies at its third step.
"""

import os
import signal
import sys
from typing import Any

from tvaccine_core import pipeline
from tvaccine_core.__main__ import main
from tvaccine_core.errors import CancelledError
from tvaccine_core.methods.alignment.sft import SFT
from tvaccine_core.methods.finetuning.plain import Plain

FAULT = sys.argv[1]
attacks: list[Plain] = []
training_step, attack_step, evaluate_state = SFT.training_step, Plain.training_step, pipeline.evaluate_state


def failing_step(self: SFT, model: Any, batch: Any, step: int) -> Any:
    """Fails in the second process."""
    if step == 2 and os.environ["RANK"] == "1":
        if FAULT == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GiB.")
    return training_step(self, model, batch, step)


def terminated_step(self: Plain, model: Any, batch: Any, step: int) -> Any:
    """A SIGTERM to the second process, at the second step of the second attack."""
    if step == 1 and os.environ["RANK"] == "1":
        attacks.append(self)
        if len(attacks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    return attack_step(self, model, batch, step)


def stopped_evaluation(states: Any, state: str, data: Any, judge: Any, config: Any, step: int, *args: Any, **kw: Any):  # noqa: ANN201
    """Is stopped in the middle of an attack, while the other process waits to train on."""
    if state == "attacked/sft/a1" and step == 2:
        raise CancelledError("Stopped.")
    yield from evaluate_state(states, state, data, judge, config, step, *args, **kw)


if FAULT in ("memory", "killed"):
    SFT.training_step = failing_step
elif FAULT == "stopped":
    pipeline.evaluate_state = stopped_evaluation
    Plain.training_step = terminated_step
sys.exit(main(sys.argv[2:]))

"""How long will it take: a few real steps, timed. Needs the weights, on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise

from tvaccine_core.adapters import ModelStates
from tvaccine_core.config import LabConfig, MethodConfig, TVaccineConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.methods import load_method
from tvaccine_core.models import load_model
from tvaccine_core.plan.pretend import ALIGNED
from tvaccine_core.plan.records import TimeEstimate
from tvaccine_core.plan.rehearsal import Workload, make_rows
from tvaccine_core.records import StepRecord
from tvaccine_core.training import fit

TIMED_STEPS = 10
WARM_UP_STEPS = 2


def probe_times(config: LabConfig, workload: Workload) -> Iterator[TimeEstimate]:
    """Load the model of `config` and take `TIMED_STEPS` steps by each of its methods, on rows of full length.

    Layers are drawn anew at every step, so that the median is that of a typical draw.

    Raises:
        ModelError: the model's weights are not here, or do not load.
        What `fit` raises.
    """
    states = ModelStates(load_model(config.model))
    for method in config.alignment.methods:
        states.add(ALIGNED, config.alignment.adapter, derive_seed(config.seed, "adapter"))
        states.train(ALIGNED)
        yield _estimate(states, config, method, workload)
        states.drop(ALIGNED)


def _estimate(states: ModelStates, config: LabConfig, method: MethodConfig, workload: Workload) -> TimeEstimate:
    optimisation = config.alignment.optimisation
    steps = optimisation.model_copy(update={"steps": WARM_UP_STEPS + TIMED_STEPS, "checkpoint_every": 0})
    drawn = method.model_copy(update={"resample_every": 1}) if isinstance(method, TVaccineConfig) else method
    probe = make_rows(workload, method.probe_batch_size) if isinstance(method, TVaccineConfig) else ()
    rows = make_rows(workload, workload.batch_size * optimisation.accumulation)
    elapsed = [0.0]
    for event in fit(
        states.model,
        load_method(drawn),
        rows,
        steps,
        seed=config.seed,
        pad_id=states.loaded.pad_id,
        probe=probe,
        activation_memory=config.model.activation_memory,
        fast_paths=config.model.fast_paths,
    ):
        if isinstance(event, StepRecord):
            elapsed.append(event.elapsed_s)
    seconds = [after - before for before, after in pairwise(elapsed)]
    step_s = statistics.median(seconds[WARM_UP_STEPS:])
    scores = isinstance(method, TVaccineConfig) and method.layer_choice in ("sampled", "top_k")
    scoring_s = max(0.0, seconds[0] - step_s) if scores else 0.0
    num_scorings = -(-optimisation.steps // method.rescore_every) if isinstance(method, TVaccineConfig) else 0
    return TimeEstimate(
        method=method.name,
        device=str(states.loaded.device),
        timed_steps=TIMED_STEPS,
        step_s=step_s,
        scoring_s=scoring_s,
        steps=optimisation.steps,
        total_s=step_s * optimisation.steps + scoring_s * num_scorings,
    )

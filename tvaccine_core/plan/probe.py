"""How long will it take: a few real steps, timed. Needs the weights, on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise

from tvaccine_core.config import AlignmentMethod, LabConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.methods import capabilities_of, load_method, method_info
from tvaccine_core.models.load import load_model
from tvaccine_core.plan.dry_run import Workload, make_rows
from tvaccine_core.plan.fake_model import ALIGNED
from tvaccine_core.plan.records import TimeEstimate
from tvaccine_core.records import StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.fit import fit

TIMED_STEPS = 10
WARM_UP_STEPS = 2


def probe_times(config: LabConfig, workload: Workload) -> Iterator[TimeEstimate]:
    """Load the model of `config` and take `TIMED_STEPS` steps with each method, on rows of full length.

    Each method has its typical settings, so that the median step is that of a long run.

    Raises:
        ModelError: the model's weights are not on this machine, or do not load.
        Errors of `fit`.
    """
    states = ModelStates(load_model(config.model))
    for method in config.alignments().values():
        states.add(ALIGNED, config.alignment.adapter, derive_seed(config.seed, "adapter"))
        states.train(ALIGNED)
        yield _estimate(states, config, method, workload)
        states.drop(ALIGNED)


def _estimate(states: ModelStates, config: LabConfig, method: AlignmentMethod, workload: Workload) -> TimeEstimate:
    optimisation = config.alignment.optimisation
    steps = optimisation.model_copy(update={"steps": WARM_UP_STEPS + TIMED_STEPS, "checkpoint_every": 0})
    does = capabilities_of(method)
    beside = {stream: make_rows(workload, does.scoring_rows or workload.batch_size) for stream in does.needs}
    rows = make_rows(workload, workload.batch_size * optimisation.accumulation)
    elapsed = [0.0]
    for event in fit(
        states.model,
        load_method(method_info(method.name).typical(method)),
        {"alignment": rows, **beside},
        steps,
        seed=config.seed,
        pad_id=states.loaded.pad_id,
        activation_memory=config.model.activation_memory,
        fast_paths=config.model.fast_paths,
    ):
        if isinstance(event, StepRecord):
            elapsed.append(event.elapsed_s)
    seconds = [after - before for before, after in pairwise(elapsed)]
    step_s = statistics.median(seconds[WARM_UP_STEPS:])
    scoring_s = max(0.0, seconds[0] - step_s) if does.score_every else 0.0
    num_scorings = -(-optimisation.steps // does.score_every) if does.score_every else 0
    return TimeEstimate(
        method=method.name,
        device=str(states.loaded.device),
        timed_steps=TIMED_STEPS,
        step_s=step_s,
        scoring_s=scoring_s,
        steps=optimisation.steps,
        total_s=step_s * optimisation.steps + scoring_s * num_scorings,
    )

"""A `judge` job: a second judge reads a run's saved answers; no model of the run is loaded."""

from collections.abc import Callable, Iterator
from itertools import groupby

from tvaccine_core.config import LabConfig
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.evaluation.judges import load_judge
from tvaccine_core.evaluation.judging import judge_saved
from tvaccine_core.evaluation.scores import score_set
from tvaccine_core.records import Event, GeneratedAnswer, Verdict
from tvaccine_core.store import JobRow, Store


def judge_answers(store: Store, job: JobRow, config: LabConfig, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Judge the answers that this judge has not judged yet, then report the scores of every state, step and set.

    Raises:
        CancelledError: `should_stop` returned True; all verdicts so far are kept.
        ConfigError: see `load_judge`.
        DataError: see `judge_saved`.
    """
    data = load_lab_data(config)
    judge = load_judge(job.params["judge"], data.world)

    def save(verdicts: list[tuple[GeneratedAnswer, Verdict]]) -> None:
        store.save_verdicts(job.run_id, judge.name, judge.revision, verdicts)

    waiting = store.unjudged(job.run_id, judge.name, judge.revision, tuple(data.eval_sets))
    yield from judge_saved(judge, data, waiting, save, should_stop)
    judged = store.judged(job.run_id, judge.name, judge.revision)
    for _, answers in groupby(sorted(judged, key=_measurement), key=_measurement):
        yield score_set(data, judge, list(answers))


def _measurement(answer: GeneratedAnswer) -> tuple[str, int, str]:
    return answer.state, answer.step, answer.eval_set

"""Measure a model state: generate answers, save them, have them judged, and count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tvaccine_core.config import EvaluationConfig
from tvaccine_core.data.sources import LabData
from tvaccine_core.evaluation.accuracy import BeginsWithLabel
from tvaccine_core.evaluation.generate import generate_answers
from tvaccine_core.evaluation.judges import AccuracyScorer, Judge
from tvaccine_core.evaluation.judging import judge_all
from tvaccine_core.evaluation.knowledge import measure_knowledge
from tvaccine_core.evaluation.scores import evaluation_examples, score_set
from tvaccine_core.names import task_of, task_set
from tvaccine_core.records import EvalRecord, GeneratedAnswer
from tvaccine_core.states.model_states import ModelStates


def evaluate_state(
    states: ModelStates,
    state: str,
    data: LabData,
    judge: Judge,
    config: EvaluationConfig,
    step: int,
    save: Callable[[list[GeneratedAnswer]], None],
    *,
    sets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    knowledge: bool = False,
    scorer: AccuracyScorer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EvalRecord]:
    """Score `state` on evaluation sets and tasks.

    All sets are generated together, since large batches cost less than several small ones.

    Args:
        states: holds `state`.
        state: its name.
        data: sets and tasks.
        judge: gives the verdicts.
        config: numbers of prompts and tokens.
        step: attack step to write into records and answers.
        save: gets all answers twice: as generated, and again with their verdicts.
        sets: names of evaluation sets; None for all of `data`.
        tasks: names of the tasks whose accuracy is measured; None for all of `data`.
        knowledge: also measure what the state knows of each set, see `evaluation.knowledge`, if its world can tell.
        scorer: counts the accuracy; default: `BeginsWithLabel`.
        should_stop: asked before every token and every batch of the judge.

    Raises:
        CancelledError: `should_stop` returned True.
    """
    scorer = scorer or BeginsWithLabel()
    names = [*(data.eval_sets if sets is None else sets), *map(task_set, data.tasks if tasks is None else tasks)]
    asked = [(name, example) for name in names for example in evaluation_examples(data, name, config)]
    state_hash = states.hash_of(state)
    texts = generate_answers(
        states,
        [(state, example.prompt) for _, example in asked],
        config.max_new_tokens,
        config.batch_size,
        should_stop=should_stop,
    )
    answers = [
        GeneratedAnswer(
            state=state,
            state_hash=state_hash,
            step=step,
            eval_set=name,
            example_id=example.id,
            prompt=example.prompt,
            reference=example.answer,
            category=example.category,
            text=text,
        )
        for (name, example), text in zip(asked, texts, strict=True)
    ]
    save(answers)
    pairs = [(example, text) for (_, example), text in zip(asked, texts, strict=True)]
    verdicts = [verdict for batch in judge_all(judge, pairs, should_stop) for verdict in batch]
    right = iter(scorer.correct([pair for (name, _), pair in zip(asked, pairs, strict=True) if task_of(name)]))
    judged = [
        answer.model_copy(
            update={
                "verdict": verdict.model_copy(update={"exact": next(right)}) if task_of(answer.eval_set) else verdict
            }
        )
        for answer, verdict in zip(answers, verdicts, strict=True)
    ]
    save(judged)
    for name in names:
        of_set = [answer for answer in judged if answer.eval_set == name]
        if not of_set:
            continue
        record = score_set(data, judge, of_set, scorer.name if task_of(name) else "")
        if knowledge and data.world.knowledge is not None and not task_of(name):
            examples = evaluation_examples(data, name, config)
            told = measure_knowledge(states, state, data.world.knowledge, judge, examples, config, should_stop)
            record = record.model_copy(update={"scores": record.scores | told})
        yield record

"""Tables of results for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE
from rich.table import Table

from tvaccine_core.names import task_of
from tvaccine_core.records import OUTCOMES
from tvaccine_core.results import RunScores, Score, StateScores, means_of, rows_of

FIRST_SCORES = ("harmful_score", "finetune_accuracy", "exact")
"""The tables show one score per set: the first of these that it has."""
KNOWLEDGE = {"known": "knows", "completed": "completes"}
"""Scores of what a model still knows (see `evaluation.knowledge`), and the titles of their columns."""
OUTCOME_TITLES = {"told in part": "part", "forgotten": "wrong", "off the point": "off"}
"""Titles of columns, where an outcome's own name is too long."""
STATE_WIDTH = 18
"""Characters of the first column of outcomes, at least: the table is made for a terminal of 80."""
TITLES = {"harmful_score": "HS", "finetune_accuracy": "FA", "exact": "exact"}


def render(runs: Sequence[RunScores]) -> list[Table]:
    """Tables of the scores and the outcomes of each run; for several runs also a table of the means."""
    tables = [table for run in runs for table in (_run_table(run), *_outcome_tables(run))]
    if len(runs) > 1:
        tables.append(_mean_table(runs))
    return tables


def _columns(rows: Iterable[StateScores]) -> list[tuple[str, str]]:
    """(set, score) of every column, in order of appearance."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for eval_set, scores in row.scores.items():
            first = next((name for name in FIRST_SCORES if name in scores), None)
            if first:
                found[eval_set, first] = None
    return list(found)


def _table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("state")
    for eval_set, score in columns:
        table.add_column(f"{TITLES[score]} %\n{(task_of(eval_set) or eval_set).replace('_', ' ')}", justify="right")
    return table


def _run_table(run: RunScores) -> Table:
    rows = list(rows_of(run))
    columns = _columns(scores for _, _, scores in rows)
    table = _table(f"Run {run.run_id}, seed {run.seed}: percent, 95 % Wilson interval, n", columns)
    table.caption, table.caption_justify = f"Judge: {run.judge}", "left"
    for _, label, scores in rows:
        table.add_row(label, *(_cell(scores.scores.get(eval_set, {}).get(name)) for eval_set, name in columns))
    return table


def _outcome_tables(run: RunScores) -> list[Table]:
    """For each set whose judge can tell: what became of its requests, and what the model still knows."""
    rows = list(rows_of(run))
    tables: list[Table] = []
    for eval_set in dict.fromkeys(where for _, _, scores in rows for where in scores.outcomes):
        title = f"Outcomes and knowledge, {eval_set.replace('_', ' ')}: percent"
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("state", min_width=STATE_WIDTH)
        for title in (*(OUTCOME_TITLES.get(outcome, outcome) for outcome in OUTCOMES), *KNOWLEDGE.values()):
            table.add_column(title, justify="right")
        for _, label, scores in rows:
            if eval_set in scores.outcomes:
                table.add_row(label, *_outcome_cells(scores, eval_set))
        tables.append(table)
    return tables


def _outcome_cells(scores: StateScores, eval_set: str) -> list[str]:
    counts = scores.outcomes[eval_set]
    total = sum(counts.values())
    told = [f"{100 * counts[outcome] / total:.0f}" for outcome in OUTCOMES]
    measured = [scores.scores[eval_set].get(name) for name in KNOWLEDGE]
    return [*told, *("" if score is None else f"{score.percent:.0f}" for score in measured)]


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.percent:.1f}\n{score.low:.0f}–{score.high:.0f}, {score.n}"


def _mean_table(runs: Sequence[RunScores]) -> Table:
    labels: dict[str, str] = {}
    for run in runs:
        labels |= {state: label for state, label, _ in rows_of(run)}
    columns = _columns(scores for run in runs for _, _, scores in rows_of(run))
    means: Mapping[str, Mapping[str, float]] = means_of(runs)
    table = _table(f"Mean over {len(runs)} seeds", columns)
    for state, label in labels.items():
        cells = [means[state].get(f"{eval_set}/{name}") for eval_set, name in columns]
        table.add_row(label, *("" if mean is None else f"{mean:.1f}" for mean in cells))
    return table

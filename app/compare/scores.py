"""The scores before and after the attack: every state of the run in a table, and each defence in a figure."""

import gradio as gr

from app import charts, markup, panes, text
from app.components import figure, news_block, section
from app.draft import is_own
from app.looks import Look
from app.page import Glance, Page
from app.services import Proportion
from app.tabs.attack import task_set
from app.views import RunView


def build(page: Page) -> None:
    """Place and wire title and table."""
    gr.HTML(section(text.SCORES_TITLE), apply_default_css=False)
    page.show(news_block("scores-table"), lambda glance: glance.stamp("eval", "state", "jobs_made"), draw_table)


def build_bars(page: Page) -> None:
    """Place and wire the figure."""
    page.show(figure("scores"), lambda glance: glance.stamp("eval", "jobs_made"), draw_bars)


def draw_table(glance: Glance) -> str:
    """Every state of the run against every measure."""
    view = glance.view
    if view is None or not view.evals:
        return markup.notice(text.SCORES_EMPTY)
    columns = table_columns(view, task_set(view, glance.attack))
    rows: list[tuple[str, str | None, str, dict[str, Proportion | None]]] = []
    states: list[tuple[str, str | None, str]] = [(panes.BASE, None, text.BASE_TITLE)]
    for defence in view.defences:
        look = view.looks[defence]
        for when, state in view.states_of(defence, glance.attack).items():
            states.append((state, look.colour, f"{look.title}, {text.WHEN_SHORT[when]}"))
    for state, colour, title in states:
        if any(name == state for name, _, _ in view.evals):
            known = view.states.get(state)
            scores = {column: score_of(view, state, column) for column in columns}
            rows.append((title, colour, known.state_hash[: panes.SHORT_HASH] if known else "", scores))
    judge = next(iter(view.evals.values())).judge
    caption = text.TABLE_CAPTION.format(judge=judge, seed=view.config.seed)
    warning = markup.notice(text.OWN_DATA, "warning") if is_own(view.config.model) else ""
    return warning + markup.scores_table(rows, columns) + f'<p class="lab-note">{caption}</p>'


def draw_bars(glance: Glance) -> charts.Spec:
    """HS by set and FA of each defence, before and after the attack shown."""
    return charts.score_bars(bar_rows(glance))


def bar_rows(glance: Glance) -> list[tuple[Look, str, dict[str, Proportion]]]:
    """Rows of the figure: a defence's look, before or after, and its scores by set."""
    view = glance.view
    if view is None:
        return []
    task = task_set(view, glance.attack)
    columns = {where: f"{where}/harmful_score" for where in view.harmful_sets}
    columns[task] = f"{task}/finetune_accuracy"
    rows = []
    for defence in view.defences:
        for when, state in view.states_of(defence, glance.attack).items():
            found = {where: score_of(view, state, column) for where, column in columns.items()}
            rows.append(
                (view.looks[defence], when, {where: score for where, score in found.items() if score is not None})
            )
    return rows


def table_columns(view: RunView, task: str) -> dict[str, str]:
    """Measures of the table: title by `set/score`."""
    columns = {f"{where}/harmful_score": text.measure_of(where) for where in view.harmful_sets}
    columns[f"{task}/finetune_accuracy"] = text.measure_of(task)
    columns |= {"ordinary/exact": text.TABLE_ORDINARY, "ordinary/over_refusal": text.TABLE_OVER_REFUSAL}
    columns |= {f"{where}/coherent": text.TABLE_COHERENT for where in view.harmful_sets[:1]}
    return columns


def score_of(view: RunView, state: str, column: str) -> Proportion | None:
    """The last measurement of a state for a column of the table."""
    where, _, measure = column.rpartition("/")
    record = view.final(state, where)
    return record.scores.get(measure) if record else None

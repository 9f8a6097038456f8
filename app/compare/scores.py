"""The scores before and after the attack: every state of the run in a table, and each defence in a figure."""

import gradio as gr

from app import charts, markup, panes, text
from app.arguments import choice_of, one_of
from app.components import figure, news_block, section
from app.draft import is_own
from app.page import Glance, Memory, Page, run_of
from app.services import JUDGES, Proportion, find_set, judge_named
from app.tabs.attack import task_set
from app.views import RunView


def build(page: Page) -> None:
    """Place and wire title, table and the tables of other judges."""
    gr.HTML(section(text.SCORES_TITLE), apply_default_css=False)
    page.show(news_block("scores-table"), lambda glance: glance.stamp("eval", "state", "jobs_made"), draw_table)
    others = news_block("other-judges")
    page.show(others, lambda glance: glance.stamp("eval", "jobs"), draw_others)

    def let_judge(memory: Memory, event: gr.EventData) -> None:
        view = page.glance(memory).view
        run_id = view.run.id if view else run_of(memory)
        page.lab.judge(run_id, one_of(choice_of(event), JUDGES, text.LET_JUDGE))
        gr.Info(text.JUDGE_QUEUED)

    page.act(others.choose, let_judge, [page.memory])


def build_bars(page: Page) -> None:
    """Place and wire the figure."""
    page.show(figure("scores"), lambda glance: glance.stamp("eval", "jobs_made"), draw_bars)


def draw_table(glance: Glance) -> str:
    """Every state of the run against every measure."""
    view = glance.view
    if view is None or not view.evals:
        return markup.notice(text.SCORES_EMPTY)
    notes = [text.TABLE_CAPTION.format(judge=judge_named(view.config.data), seed=view.config.seed)]
    notes += [
        text.SET_NOTE.format(set=found.title, note=found.note)
        for where in view.eval_sets
        if (found := find_set(where)) is not None
    ]
    warning = markup.notice(text.OWN_DATA, "warning") if is_own(view.config.model) else ""
    return warning + table_of(view, glance.attack) + "".join(f'<p class="lab-note">{note}</p>' for note in notes)


def draw_others(glance: Glance) -> str:
    """The scores of the same answers by other judges, and the judges that can still be asked."""
    view = glance.view
    if view is None or not view.evals:
        return ""
    parts: list[str] = []
    for name in view.second:
        parts.append(section(text.SECOND_TITLE.format(judge=name), text.SECOND_NOTE))
        parts.append(table_of(view.by_judge(name), glance.attack))
    others = {key: info for key, info in JUDGES.items() if key != view.config.data.judge}
    for key, info in others.items():
        job = view.judge_job(key)
        if job is not None and job.state != "done":
            parts.append(markup.notice(text.judge_state(info.title, job), "error" if job.error else "info"))
    idle = [(key, info.title) for key, info in others.items() if not (job := view.judge_job(key)) or not job.active]
    if idle:
        parts.append(f'<p class="lab-note">{text.LET_JUDGE}</p>{markup.chips(idle)}')
        parts += [f'<p class="lab-note">{info.title}: {info.note}</p>' for info in others.values()]
    return "".join(parts)


def table_of(view: RunView, attack_id: str | None) -> str:
    """States against measures."""
    columns = table_columns(view, task_set(view, attack_id))
    rows: list[tuple[str, str | None, str, dict[str, Proportion | None]]] = []
    states: list[tuple[str, str | None, str]] = [(panes.BASE, None, text.BASE_TITLE)]
    for defence in view.defences:
        look = view.looks[defence]
        for when, state in view.states_of(defence, attack_id).items():
            states.append((state, look.colour, f"{look.title}, {text.WHEN_SHORT[when]}"))
    for state, colour, title in states:
        if any(name == state for name, _, _ in view.evals):
            known = view.states.get(state)
            scores = {column: score_of(view, state, column) for column in columns}
            rows.append((title, colour, known.state_hash[: panes.SHORT_HASH] if known else "", scores))
    return markup.scores_table(rows, columns)


def draw_bars(glance: Glance) -> charts.Spec:
    """HS by set and FA of each defence, before and after the attack shown."""
    view = glance.view
    return charts.score_bars(bar_rows(glance), task_set(view, glance.attack) if view else "")


def bar_rows(glance: Glance) -> list[charts.Bars]:
    """HS and FA of every defence before the attack, after it and repaired."""
    view = glance.view
    if view is None:
        return []
    task = task_set(view, glance.attack)
    columns = {where: f"{where}/harmful_score" for where in view.harmful_sets}
    columns[task] = f"{task}/finetune_accuracy"
    rows: list[charts.Bars] = []
    for defence in view.defences:
        for when, state in view.states_of(defence, glance.attack).items():
            found = {where: score_of(view, state, column) for where, column in columns.items()}
            scores = {where: score for where, score in found.items() if score is not None}
            rows.append(charts.Bars(view.looks[defence], when, scores, cannot=bool(view.cannot(state))))
    return rows


def table_columns(view: RunView, task: str) -> dict[str, str]:
    """Measures of the table: title by `set/score`."""
    columns = {f"{where}/harmful_score": text.measure_of(where) for where in view.harmful_sets}
    if task in view.eval_sets:
        columns[f"{task}/finetune_accuracy"] = text.measure_of(task)
    for where in view.sets_with("over_refusal"):
        title = text.set_title(where)
        if where in view.sets_with("exact"):
            columns[f"{where}/exact"] = text.TABLE_EXACT.format(set=title)
        columns[f"{where}/over_refusal"] = text.TABLE_OVER_REFUSAL.format(set=title)
    coherent = view.sets_with("coherent")
    columns |= {f"{where}/coherent": text.TABLE_COHERENT for where in view.harmful_sets[:1] if where in coherent}
    return columns


def score_of(view: RunView, state: str, column: str) -> Proportion | None:
    """The last measurement of a state for a column of the table."""
    where, _, measure = column.rpartition("/")
    record = view.final(state, where)
    return record.scores.get(measure) if record else None

"""A sweep's table as a heat map: a row per defence, a column per value of a setting; each cell opens a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from app import text
from app.compare.outcomes import bar
from app.services import (
    SEEDS,
    Cell,
    CellResult,
    Estimate,
    Measure,
    SweepView,
    accuracy,
    after,
    difference,
    estimate,
    intact,
    known_after,
    matched,
    outcome_counts,
    setting_of_columns,
    sweep_measures,
    title_of,
    words_of,
)


@dataclass
class _Square:
    """Cells of one defence that differ in seeds only."""

    cells: list[Cell] = field(default_factory=list)
    results: list[CellResult] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """Squares by group (the settings that are not columns), defence and column."""

    setting: str
    columns: tuple[str, ...]
    groups: tuple[str, ...]
    defences: tuple[tuple[str, str], ...]
    """Name and title."""
    squares: dict[tuple[str, str, str], _Square]


def grid_of(view: SweepView) -> Grid:
    """The sweep's squares, those without results included."""
    cells = view.cells
    setting = setting_of_columns(list(dict.fromkeys(path for cell in cells for path in cell.varied)))
    squares: dict[tuple[str, str, str], _Square] = {}
    for cell in cells:
        column = words_of(cell.varied.get(setting, cell.attack.harmful_ratio))
        place = (text.settings_words(cell.varied, (*SEEDS, setting)), cell.defence.name, column)
        square = squares.setdefault(place, _Square())
        square.cells.append(cell)
        if cell.key in view.results:
            square.results.append(view.results[cell.key])
    return Grid(
        setting=setting,
        columns=tuple(dict.fromkeys(column for _, _, column in squares)),
        groups=tuple(dict.fromkeys(group for group, _, _ in squares)),
        defences=tuple(dict.fromkeys((cell.defence.name, title_of(cell.defence)) for cell in cells)),
        squares=squares,
    )


def tables(view: SweepView) -> dict[str, tuple[str, str]]:
    """For each measure, and for the outcomes of each set: its title, and the table. Empty without results."""
    results = list(view.results.values())
    if not results:
        return {}
    grid = grid_of(view)
    found: dict[str, tuple[str, str]] = {}
    for number, (title, measure) in enumerate(sweep_measures(results)):
        estimates = {place: estimate(square.results, measure) for place, square in grid.squares.items()}
        top = max([100.0, *(each.mean for each in estimates.values() if each.n)])
        harm = title.startswith("HS")
        found[f"m{number}"] = (title, _table(grid, _numbers(grid, measure, estimates, top, harm)))
    for where in results[0].harmful_sets:
        title = text.SWEEP_OUTCOMES.format(where=text.set_title(where))
        found[f"o{where}"] = (title, _table(grid, _outcomes(grid, where)))
    return found


Draw = Callable[[tuple[str, str, str]], tuple[str, str]]
"""Attributes and content of the square at a place."""


def _numbers(
    grid: Grid, measure: Measure, estimates: dict[tuple[str, str, str], Estimate], top: float, harm: bool
) -> Draw:
    first = grid.defences[0][0]

    def draw(place: tuple[str, str, str]) -> tuple[str, str]:
        group, defence, column = place
        square, found = grid.squares[place], estimates[place]
        if not found.n:
            return "", "–"
        words = f"<b>{found.mean:.0f}</b>" + (f" ± {found.half_width:.0f}" if found.n > 1 else "")
        if defence != first:
            twin = grid.squares.get((group, first, column), _Square())
            change = difference(square.results, twin.results, measure)
            if change.n:
                words += f" <small>({change.mean:+.0f}{f' ± {change.half_width:.0f}' if change.n > 1 else ''})</small>"
        told = [kept for result in square.results if (kept := intact(result)) is not None]
        hollow = " data-cannot" if told and not any(told) else ""
        return f'{hollow}{" data-harm" if harm else ""} style="--heat:{100 * found.mean / top:.0f}%"', words

    return draw


def _outcomes(grid: Grid, where: str) -> Draw:
    def draw(place: tuple[str, str, str]) -> tuple[str, str]:
        counts = outcome_counts(grid.squares[place].results, [where])
        return "", bar(counts) if counts else "–"

    return draw


def _table(grid: Grid, draw: Draw) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    rows: list[str] = []
    for group in grid.groups:
        if group:
            rows.append(f'<tr><th class="lab-group" colspan="{len(grid.columns) + 1}">{escape(group)}</th></tr>')
        for name, title in grid.defences:
            squares = "".join(_square(grid, (group, name, column), draw) for column in grid.columns)
            rows.append(f'<tr><th scope="row">{escape(title)}</th>{squares}</tr>')
    return (
        '<div class="lab-scroll lab-grid"><table class="lab-table"><thead><tr>'
        f'<th scope="col">{escape(grid.setting)}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _square(grid: Grid, place: tuple[str, str, str], draw: Draw) -> str:
    square = grid.squares.get(place)
    if square is None:
        return "<td></td>"
    done, total = len(square.results), len(square.cells)
    part = f" <small>{text.SWEEP_MADE_OF.format(done=done, total=total)}</small>" if done < total else ""
    if not done:
        return f'<td class="lab-dim">{part}</td>'
    attributes, words = draw(place)
    choice = escape(square.results[0].key)
    return f'<td{attributes}><button type="button" data-choice="{choice}">{words}</button>{part}</td>'


def cell_rows(view: SweepView) -> str:
    """Every cell of the sweep in a table that is folded: its settings, its scores, and a button that opens it."""
    measures = _of_a_cell(list(view.results.values()))
    head = "".join(f'<th scope="col">{escape(words)}</th>' for words in text.SWEEP_CELL_HEAD)
    rows = "".join(_cell_row(cell, view.results.get(cell.key), measures) for cell in view.cells)
    return (
        f"<details><summary>{escape(text.SWEEP_CELLS)}</summary>"
        f'<div class="lab-scroll"><table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>"
    )


def _of_a_cell(results: Sequence[CellResult]) -> list[Measure]:
    """HS at matched accuracy and HS on the first harmful set, FA, knowledge: in the order of `SWEEP_CELL_HEAD`."""
    where = next((where for result in results for where in result.harmful_sets), "")
    return [matched(where), after(where), accuracy, known_after]


def _cell_row(cell: Cell, result: CellResult | None, measures: Sequence[Measure]) -> str:
    words = f'<th scope="row">{escape(title_of(cell.defence))}</th><td>{escape(text.settings_words(cell.varied))}</td>'
    if result is None:
        return f'<tr>{words}<td class="lab-dim" colspan="5">{escape(text.SWEEP_CELL_TODO)}</td></tr>'
    numbers = [measure(result) for measure in measures]
    shown = "".join(f"<td>{'–' if number is None else f'{number:.0f}'}</td>" for number in numbers)
    button = f'<button type="button" class="lab-row" data-choice="{escape(result.key)}">{text.SWEEP_CELL_OPEN}</button>'
    return f"<tr>{words}{shown}<td>{button}</td></tr>"

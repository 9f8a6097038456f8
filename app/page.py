"""The page's machinery: who looks at which run, what is redrawn when it changes, and when the page may rest.

Every live component is registered with `show(component, key, draw)`: `key` says what its picture depends on, `draw`
makes it. One handler, `refresh`, compares keys with those this viewer has seen and sends only what differs. It runs on
a timer while work is queued or running, and otherwise only when somebody acts or comes back to the page.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from app import text
from app.components import step_rail
from app.draft import Draft
from app.guard import guarded
from app.services import Lab, RunNotFoundError, new_owner
from app.views import RunView, Views

TICK_S = 1.0
STORAGE_KEY = "tvaccine-lab"
STORAGE_SECRET = "run and visitor names"
"""Fixed, so that a browser finds its run again after the server restarted. It hides nothing worth hiding."""

Widget = Component | BlockContext

Memory = dict[str, Any]
"""What a browser remembers: `run`, `attack` (the one shown), `base` (the fifth pane) and `owner` (the visitor)."""

LONGEST_NAME = 64
"""Characters of a name that a browser remembers."""

NOTHING: Memory = {"run": None, "attack": None, "base": False, "owner": None}


@dataclass(frozen=True)
class Glance:
    """What one viewer looks at now."""

    lab: Lab
    view: RunView | None
    attack: str | None
    """The attack shown; None if the run has none."""
    memory: Memory
    """What this viewer's browser remembers; only drawings of their own may depend on it."""

    @property
    def missed(self) -> str | None:
        """The run that the viewer's browser remembers and that is gone."""
        return self.memory["run"] if self.view is None else None

    def stamp(self, *topics: str) -> Hashable:
        """Changes whenever one of the run's `topics` does, or another run or attack is shown."""
        return (self.attack, self.view.stamp(*topics) if self.view else None)


@dataclass(frozen=True)
class Live:
    """A component that follows the run."""

    component: Widget
    key: Callable[[Glance], Hashable]
    draw: Callable[[Glance], Any]
    own: bool
    """Depends on the viewer, not only on the run and the attack shown."""


class Page:
    """What all screens share. Made inside `gr.Blocks`, wired by `finish` when every screen is built."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.views = Views(lab)
        self.memory = gr.BrowserState(NOTHING, storage_key=STORAGE_KEY, secret=STORAGE_SECRET)
        self.seen = gr.State({})
        self.timer = gr.Timer(TICK_S, active=False)
        self.rail = step_rail()
        self._live: list[Live] = []
        self._acts: list[Dependency] = []
        self._loaded: list[tuple[Callable[..., Any], Sequence[Widget], Sequence[Widget], dict[str, Any]]] = []

    def show(
        self, component: Widget, key: Callable[[Glance], Hashable], draw: Callable[[Glance], Any], own: bool = False
    ) -> None:
        """Keep `component` at `draw(glance)`, redrawn when `key(glance)` changes; once for all viewers unless `own`."""
        self._live.append(Live(component, key, draw, own))

    def act(
        self,
        trigger: Callable[..., Dependency],
        handler: Callable[..., Any],
        inputs: Sequence[Widget] = (),
        outputs: Sequence[Widget] = (),
        **options: Any,
    ) -> Dependency:
        """Let `trigger` call `handler`, readable errors included, and look at the run again afterwards."""
        options = {"show_progress": "hidden", "api_visibility": "private"} | options
        dependency = trigger(guarded(handler, self.lab.store.home), list(inputs), list(outputs), **options)
        self._acts.append(dependency)
        return dependency

    def on(
        self,
        trigger: Callable[..., Dependency],
        handler: Callable[..., Any],
        inputs: Sequence[Widget] = (),
        outputs: Sequence[Widget] = (),
        **options: Any,
    ) -> Dependency:
        """Like `act`, for what changes nothing in the store: no second look."""
        options = {"show_progress": "hidden", "api_visibility": "private"} | options
        return trigger(guarded(handler, self.lab.store.home), list(inputs), list(outputs), **options)

    def glance(self, memory: Memory | None, fresh: bool = False) -> Glance:
        """What the browser with this memory looks at; no run if it is gone."""
        memory = remembered(memory)
        view = None
        if memory["run"]:
            try:
                view = self.views.view(memory["run"], fresh=fresh)
            except RunNotFoundError:
                self.views.forget(memory["run"])
        return Glance(self.lab, view, view.choose_attack(memory["attack"]) if view else None, memory)

    def on_loaded(
        self, handler: Callable[..., Any], inputs: Sequence[Widget], outputs: Sequence[Widget], **options: Any
    ) -> None:
        """Call `handler` when a page was opened or reloaded and shows its run."""
        self._loaded.append((handler, inputs, outputs, options))

    def finish(self, blocks: gr.Blocks, walkthrough: gr.Walkthrough, draft: Draft) -> None:
        """Wire the refresh to the timer, to every act, to the rail and to the opening of the page."""
        outputs = [self.seen, self.timer, *(live.component for live in self._live)]
        inputs = [self.memory, self.seen]
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        self.act(self.rail.gone, self._say_gone, [self.memory], [self.memory])
        refresh = guarded(self._refresh, self.lab.store.home)
        self.timer.tick(guarded(self._tick, self.lab.store.home), inputs, outputs, trigger_mode="once", **options)
        for act in self._acts:
            act.then(refresh, inputs, outputs, **options)
        self.rail.look(refresh, inputs, outputs, **options)
        select = "() => ({__type__: 'update', selected: window.labStep})"
        self.rail.go(None, None, walkthrough, js=select, api_visibility="private")

        def load(memory: Memory, request: gr.Request) -> list[Any]:
            memory = remembered(memory)
            wanted = request.query_params.get("run")
            if wanted and wanted != memory["run"]:
                memory = remembered(memory, run=wanted, attack=None)
            glance = self.glance(memory, fresh=True)
            if (memory["run"] or wanted) and glance.view is None:
                if wanted:
                    gr.Warning(f"{text.RUN_GONE} {text.RUN_GONE_REMEDY}")
                memory = remembered(memory, run=None, attack=None)
            return [memory, *(draft.fill(glance.view.config) if glance.view else [gr.skip()] * len(draft.outputs))]

        queued: dict[str, Any] = {**options, "queue": True}  # only what goes through the queue can show a message
        shown = blocks.load(guarded(load, self.lab.store.home), [self.memory], [self.memory, *draft.outputs], **queued)
        shown = shown.then(refresh, inputs, outputs, **options)
        for handler, wants, gives, special in self._loaded:
            shown.then(guarded(handler, self.lab.store.home), wants, gives, **queued | special)

    def _tick(self, memory: Memory, seen: dict[int, Hashable]) -> list[Any]:
        return self._refresh(memory, seen, fresh=False)

    def _refresh(self, memory: Memory, seen: dict[int, Hashable], fresh: bool = True) -> list[Any]:
        """What differs from what this viewer has seen: their new `seen`, the timer, and every live component."""
        glance = self.glance(memory, fresh)
        active = bool(glance.view and glance.view.active)
        now: dict[int, Hashable] = {-1: active}
        updates: list[Any] = []
        for number, live in enumerate(self._live):
            now[number] = key = live.key(glance)
            if seen.get(number, _UNSEEN) == key:
                updates.append(gr.skip())
            elif live.own:
                updates.append(live.draw(glance))
            else:
                updates.append(self.views.drawn(number, key, partial(live.draw, glance)))
        timer = gr.skip() if seen.get(-1) == active else gr.Timer(active=active)
        return [gr.skip() if now == seen else now, timer, *updates]

    def _say_gone(self, memory: Memory) -> Memory:
        """Say once that the run shown was deleted meanwhile, by somebody else; the page then shows none."""
        missed = self.glance(memory, fresh=True).missed
        memory = remembered(memory)
        if missed is None:  # another one was opened since
            return memory
        gr.Warning(f"{text.RUN_GONE} {text.RUN_GONE_REMEDY}")
        return remembered(memory, run=None, attack=None)


_UNSEEN = object()


def remembered(memory: Memory | None, **changes: Any) -> Memory:
    """A browser's memory with `changes`; a browser without a name gets one. What is no memory counts as none."""
    found = (memory if isinstance(memory, dict) else {}) | changes
    names = {key: name if _is_name(name := found.get(key)) else None for key in ("run", "attack", "owner")}
    return names | {"base": found.get("base") is True, "owner": names["owner"] or new_owner()}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()


def run_of(memory: Memory | None) -> str:
    """The run a browser looks at. Raises `RunNotFoundError` if it looks at none."""
    run_id = remembered(memory)["run"]
    if run_id is None:
        raise RunNotFoundError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
    return run_id

"""The page's mechanics: which run a viewer looks at, and which components are drawn again when it changes.

Every live component is registered with `show(component, key, draw)`: `key` names everything on which the component
depends, `draw` makes it. Markup and figures that are the same for all viewers are news (`app.news`): the page's script
asks for them once per second while work is queued or running. All other live components are outputs of one Gradio
event, `refresh`. It compares the keys with the keys that this viewer has seen, and sends only what differs: when the
page opens, when somebody acts or comes back to it, and when the news say that there is something to refresh.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from app import text
from app.components import is_news, step_rail
from app.draft import Draft
from app.glance import NOTHING, Glance, Memory, remembered, run_of
from app.guard import guarded
from app.news import Drawing, News, digest
from app.services import FIRST_SHOWN, Lab, RunNotFoundError
from app.views import Views

__all__ = ["Glance", "Memory", "Page", "remembered", "run_of"]

STORAGE_KEY = "tvaccine-lab"
STORAGE_SECRET = "run and visitor names"
"""Fixed, so that a browser finds its run again after the server restarted. It protects nothing secret."""

Widget = Component | BlockContext


@dataclass(frozen=True)
class Live:
    """A component that Gradio refreshes."""

    component: Widget
    key: Callable[[Glance], Hashable]
    draw: Callable[[Glance], Any]
    own: bool
    """Whether it depends on the viewer, not only on the run and the attack shown."""


class Page:
    """Shared by all screens. Made inside `gr.Blocks`, wired by `finish` when every screen is built."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.views = Views(lab)
        self.memory = gr.BrowserState(NOTHING, storage_key=STORAGE_KEY, secret=STORAGE_SECRET)
        self.seen = gr.State({})
        self.rail = step_rail()
        self.news = News(lab, self.views, self._look)
        self._live: list[Live] = []
        self._acts: list[Dependency] = []

    def show(
        self,
        component: Widget,
        key: Callable[[Glance], Hashable],
        draw: Callable[[Glance], Any],
        *,
        own: bool = False,
        every_s: float = 0.0,
    ) -> None:
        """Let `component` show `draw(glance)`, drawn again when `key(glance)` changes.

        Args:
            own: it also depends on the viewer's memory; else it is drawn once for all viewers of the run.
            every_s: draw news no more often than this while the run is active.
        """
        if is_news(component):
            assert not own, "news are the same for all viewers"
            self.news.add(Drawing(str(component.elem_id), key, draw, every_s))
        else:
            self._live.append(Live(component, key, draw, own))

    def act(
        self,
        trigger: Callable[..., Dependency],
        handler: Callable[..., Any],
        inputs: Sequence[Widget] = (),
        outputs: Sequence[Widget] = (),
        **options: Any,
    ) -> Dependency:
        """Let `trigger` call `handler`, with readable errors, and read the run again afterwards."""
        dependency = self.on(trigger, handler, inputs, outputs, **options)
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
        """Like `act`, for handlers that change nothing in the store: the run is not read again."""
        options = {"show_progress": "hidden", "api_visibility": "private"} | options
        return trigger(guarded(handler, self.lab.store.home), list(inputs), list(outputs), **options)

    def glance(self, memory: Memory | None, fresh: bool = False) -> Glance:
        """The glance of the browser with this memory; without a run if the run is gone."""
        memory = remembered(memory)
        view = None
        wanted = memory["run"] or FIRST_SHOWN
        try:
            view = self.views.view(wanted, fresh=fresh)
        except RunNotFoundError:
            self.news.forget(wanted)
        attack = view.choose_attack(memory["attack"]) if view else None
        return Glance(self.lab, view, attack, memory, wanted_sweep=memory["sweep"])

    def finish(self, blocks: gr.Blocks, walkthrough: gr.Walkthrough, draft: Draft) -> None:
        """Wire the refresh to every action, to the rail and to the opening of the page."""
        outputs = [self.seen, self.rail, *(live.component for live in self._live)]
        inputs = [self.memory, self.seen]
        # When a refresh begins, the action is in the store: so the page asks for news at once.
        ask = "(memory, seen) => { window.lab?.ask(); return [memory, seen]; }"
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        self.act(self.rail.gone, self._say_gone, [self.memory], [self.memory])
        refresh = guarded(self._refresh, self.lab.store.home)
        for act in self._acts:
            act.then(refresh, inputs, outputs, js=ask, **options)
        self.rail.look(refresh, inputs, outputs, js=ask, trigger_mode="always_last", **options)
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
            chosen = glance.view is not None and memory["run"] is not None
            return [memory, *(draft.fill(glance.config) if chosen else [gr.skip()] * len(draft.outputs))]

        queued: dict[str, Any] = {**options, "queue": True}  # only events in the queue can show a message
        shown = blocks.load(guarded(load, self.lab.store.home), [self.memory], [self.memory, *draft.outputs], **queued)
        shown.then(refresh, inputs, outputs, **options)

    def _refresh(self, memory: Memory, seen: dict[int, Hashable]) -> list[Any]:
        """This viewer's new `seen`, what they watch, and every live component; unchanged ones are skipped."""
        glance = self.glance(memory, fresh=True)
        watched = {
            "run": glance.view.run.id if glance.view else "",
            "attack": glance.attack or "",
            "sweep": glance.wanted_sweep or "",
            "look": self._look(glance),
        }
        now: dict[int, Hashable] = {_WATCHED: digest((watched, glance.missed))}
        updates: list[Any] = []
        for number, live in enumerate(self._live):
            now[number] = key = live.key(glance)
            updates.append(gr.skip() if seen.get(number, _UNSEEN) == key else live.draw(glance))
        rail = gr.skip() if seen.get(_WATCHED) == now[_WATCHED] else {"watched": watched, "missed": glance.missed}
        return [gr.skip() if now == seen else now, rail, *updates]

    def _look(self, glance: Glance) -> str:
        """Names the state of everything that a refresh draws, for any viewer of the run."""
        shared = [live.key(glance) for live in self._live if not live.own]
        return digest((glance.stamp("state", "jobs_made"), shared))

    def _say_gone(self, memory: Memory) -> Memory:
        """Say once that somebody else deleted the run that is shown; then the page shows no run."""
        missed = self.glance(memory, fresh=True).missed
        memory = remembered(memory)
        if missed is None:  # another run was opened since
            return memory
        gr.Warning(f"{text.RUN_GONE} {text.RUN_GONE_REMEDY}")
        return remembered(memory, run=None, attack=None)


_WATCHED = -1
"""Key in `seen` of the run that the rail watches."""
_UNSEEN = object()

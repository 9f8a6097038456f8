"""News of a run: the parts that all its viewers see, drawn and serialised once per change; viewers ask every second.

A poll does not use Gradio, which builds every output of an event anew, even unchanged outputs. A poll is one SELECT by
key, for the revisions of the run and of the list of runs. If the board was drawn from these revisions, and the viewer
has seen the board, there are no news. Else the viewer gets the parts that changed since, as bytes made once for all.

Gradio keeps the parts that depend on the viewer, and all that is not markup or figure (buttons, menus). `look` in the
news names the state of these parts; a page that shows them in another state lets Gradio refresh them.
"""

import hashlib
import logging
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.exports import readable
from app.glance import NOTHING, Glance
from app.services import Lab, Revisions, RunNotFoundError
from app.views import Views

MAX_BOARDS = 32
"""Boards in memory; one per run, attack and sweep that somebody looks at."""
MIN_AGE_S = 0.5
"""A board younger than this is shown again, whatever happened since."""

log = logging.getLogger(__name__)

GONE = b'{"gone":true,"more":false}'

NEVER = Revisions(runs=-1, run=-1)
"""Older than all revisions."""


@dataclass(frozen=True)
class Drawing:
    """A part of the page that is the same for all viewers of a run and an attack."""

    name: str
    """The element's id."""
    key: Callable[[Glance], Hashable]
    draw: Callable[[Glance], Any]
    every_s: float = 0.0
    """Shortest time between two drawings while the run is active."""


@dataclass
class _Part:
    """A drawing on a board: made for `key`, on the board since `version`."""

    key: Hashable
    version: int
    drawn_at: float
    value: bytes


@dataclass
class _Board:
    """All drawings of a run, an attack and a sweep."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    """Distinguishes this board's versions from those of another process or run."""
    revisions: Revisions = NEVER
    """Revisions of the store, read before the board was drawn."""
    version: int = 0
    read_at: float = -math.inf
    due: float = math.inf
    """When a waiting drawing may be made."""
    parts: dict[str, _Part] = field(default_factory=dict)
    head: tuple[bool, str] | None = None
    """Whether the run is active, and `look`."""
    answers: dict[tuple[int, bool], bytes] = field(default_factory=dict)
    """Answers of this version, by the version that a viewer has seen and whether more will come."""


class News:
    """The news for the viewers of every run.

    Args:
        look: names the state of all that Gradio refreshes, for any viewer of the run.
    """

    def __init__(self, lab: Lab, views: Views, look: Callable[[Glance], str]) -> None:
        self._lab = lab
        self._views = views
        self._look = look
        self._drawings: list[Drawing] = []
        self._boards: OrderedDict[tuple[str, str, str], _Board] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, drawing: Drawing) -> None:
        """Keep a drawing up to date on every board."""
        self._drawings.append(drawing)

    @property
    def drawings(self) -> Sequence[Drawing]:
        """All drawings, in the order in which they were added."""
        return tuple(self._drawings)

    def poll(self, run_id: str, attack: str, seen: str, sweep: str = "") -> bytes | None:
        """News as JSON, or None if there are none.

        `seen`: names this board's version; `more`: ask again in a second; `look`: see `News`; `values`: the changed
        parts by element. `gone`: the run does not exist (any more).

        Args:
            run_id: "" while no run is open.
            attack: the attack shown; "" for the newest.
            seen: `seen` of the last news; "" asks for everything.
            sweep: the sweep shown; "" for the newest.
        """
        try:
            revisions = self._lab.store.revisions(run_id or None)
            board = self._board(run_id, attack, sweep)
            with board.lock:
                now = time.monotonic()
                if (_newer(revisions, board) or now >= board.due) and now - board.read_at >= MIN_AGE_S:
                    self._draw(board, run_id, attack, sweep, revisions, now)
                return _answer(board, seen, stale=_newer(revisions, board))
        except RunNotFoundError:
            self.forget(run_id)
            return GONE

    def forget(self, run_id: str) -> None:
        """Drop the boards of a deleted run."""
        self._views.forget(run_id)
        with self._lock:
            for key in [key for key in self._boards if key[0] == run_id]:
                del self._boards[key]

    def _board(self, *shown: *tuple[str, str, str]) -> _Board:
        with self._lock:
            board = self._boards.setdefault(shown, _Board())
            self._boards.move_to_end(shown)
            while len(self._boards) > MAX_BOARDS:
                self._boards.popitem(last=False)
            return board

    def _draw(self, board: _Board, run_id: str, attack: str, sweep: str, revisions: Revisions, now: float) -> None:
        """Bring the board up to date, at least to `revisions`, which were read before."""
        view = self._views.view(run_id, fresh=True) if run_id else None
        shown = view.choose_attack(attack) if view else None
        glance = Glance(self._lab, view, shown, NOTHING, revisions.runs, sweep or None)
        active = bool(view and view.active) or bool(glance.sweep and glance.sweep.state == "running")
        version = board.version + 1
        changed = False
        due = math.inf
        for drawing in self._drawings:
            part = board.parts.get(drawing.name)
            try:
                key = drawing.key(glance)
                if part is not None and part.key == key:
                    continue
                if part is not None and active and now < part.drawn_at + drawing.every_s:
                    due = min(due, part.drawn_at + drawing.every_s)
                    continue
                value = orjson.dumps(drawing.draw(glance))
            except RunNotFoundError:
                raise
            except Exception:  # a fault in one drawing must not take all others away
                log.exception("%s cannot be drawn", drawing.name)
                continue
            if part is not None and part.value == value:
                part.key = key
            else:
                board.parts[drawing.name] = _Part(key, version, now, value)
                changed = True
        head = (active, self._look(glance))
        if head != board.head:
            board.head, changed = head, True
        if changed:
            board.version = version
            board.answers.clear()
        board.revisions, board.read_at, board.due = revisions, now, due


def news_route(news: News, home: Path) -> BaseRoute:
    """The route `/lab/news` for the page's script; an answer without content if there are no news."""

    def tell(request: Request) -> Response:
        run, attack, seen, sweep = (request.query_params.get(name, "") for name in ("run", "attack", "seen", "sweep"))
        body = news.poll(run, attack, seen, sweep)
        fresh = {"Cache-Control": "no-store"}
        if body is None:
            return Response(status_code=204, headers=fresh)
        return Response(body, media_type="application/json", headers=fresh)

    return Route("/lab/news", readable(tell, home))


def _newer(revisions: Revisions, board: _Board) -> bool:
    return revisions.runs > board.revisions.runs or revisions.run > board.revisions.run


def _answer(board: _Board, seen: str, stale: bool) -> bytes | None:
    """The changes on the board since `seen`. If it is `stale`, the page must ask again, whatever it shows."""
    board_id, _, number = seen.partition(".")
    since = int(number) if board_id == board.id and number.isdecimal() else 0
    active, look = board.head or (False, "")
    if since == board.version and not stale:
        return None
    more = active or stale
    if (since, more) not in board.answers:
        values = b",".join(
            b"%s:%s" % (orjson.dumps(name), part.value) for name, part in board.parts.items() if part.version > since
        )
        head = orjson.dumps({"seen": f"{board.id}.{board.version}", "more": more, "look": look})
        board.answers[since, more] = b'%s,"values":{%s}}' % (head[:-1], values)
    return board.answers[since, more]


def digest(state: object) -> str:
    """A short name for a state made of tuples, text and numbers: equal states have equal names."""
    return hashlib.blake2b(repr(state).encode(), digest_size=6).hexdigest()

"""News of a run: what all its viewers see, drawn and serialised once per change, asked for once per second by each.

A poll goes past Gradio, which builds every output of an event anew, the untouched ones too. It is one SELECT by key,
for the revisions of the run and of the list of runs. If the board was drawn from these, and the viewer has seen the
board, there is nothing to say. Else the viewer gets the parts that changed since, as bytes made once for all.

What depends on the viewer, and what is no markup or figure (buttons, menus), stays with Gradio. `look` in the news
names the state of all that; a page that shows it in another state lets Gradio refresh it.
"""

import hashlib
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
"""Boards kept; one for each run and attack that somebody looks at."""
MIN_AGE_S = 0.5
"""A board this young is shown again, whatever happened since."""

GONE = b'{"gone":true,"more":false}'

NEVER = Revisions(runs=-1, run=-1)
"""Older than any."""


@dataclass(frozen=True)
class Drawing:
    """A part of the page that is the same for all viewers of a run and an attack."""

    name: str
    """The element's id."""
    key: Callable[[Glance], Hashable]
    draw: Callable[[Glance], Any]
    every_s: float = 0.0
    """Least time between two drawings while the run is active."""


@dataclass
class _Part:
    """A drawing as it is shown: made for `key`, part of the board since `version`."""

    key: Hashable
    version: int
    drawn_at: float
    value: bytes


@dataclass
class _Board:
    """All drawings of a run and an attack."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells this board's versions from those of another process or run."""
    revisions: Revisions = NEVER
    """Of the store, before the board was drawn."""
    version: int = 0
    read_at: float = -math.inf
    due: float = math.inf
    """When a drawing that waits may be made."""
    parts: dict[str, _Part] = field(default_factory=dict)
    head: tuple[bool, str] | None = None
    """Whether the run is active, and `look`."""
    answers: dict[tuple[int, bool], bytes] = field(default_factory=dict)
    """By what the viewer has seen and whether there is more to come; of this version."""


class News:
    """What there is to say to the viewers of every run.

    Args:
        look: names the state of all that Gradio refreshes, for any viewer of the run.
    """

    def __init__(self, lab: Lab, views: Views, look: Callable[[Glance], str]) -> None:
        self._lab = lab
        self._views = views
        self._look = look
        self._drawings: list[Drawing] = []
        self._boards: OrderedDict[tuple[str, str], _Board] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, drawing: Drawing) -> None:
        """Keep a drawing up to date on every board."""
        self._drawings.append(drawing)

    @property
    def drawings(self) -> Sequence[Drawing]:
        """All of them, in the order in which they were added."""
        return tuple(self._drawings)

    def poll(self, run_id: str, attack: str, seen: str) -> bytes | None:
        """News as JSON, or None if there are none.

        `seen`: names this board as it is now; `more`: ask again in a second; `look`: see `News`; `values`: by element,
        what changed. A run that does not exist (any more) is `gone`.

        Args:
            run_id: "" while no run is open.
            attack: the one shown; "" for the newest.
            seen: as the last news had it; "" at first, which asks for everything.
        """
        try:
            revisions = self._lab.store.revisions(run_id or None)
            board = self._board(run_id, attack)
            with board.lock:
                now = time.monotonic()
                if (_newer(revisions, board) or now >= board.due) and now - board.read_at >= MIN_AGE_S:
                    self._draw(board, run_id, attack, revisions, now)
                return _answer(board, seen, stale=_newer(revisions, board))
        except RunNotFoundError:
            self.forget(run_id)
            return GONE

    def forget(self, run_id: str) -> None:
        """The run was deleted."""
        self._views.forget(run_id)
        with self._lock:
            for key in [key for key in self._boards if key[0] == run_id]:
                del self._boards[key]

    def _board(self, run_id: str, attack: str) -> _Board:
        with self._lock:
            board = self._boards.setdefault((run_id, attack), _Board())
            self._boards.move_to_end((run_id, attack))
            while len(self._boards) > MAX_BOARDS:
                self._boards.popitem(last=False)
            return board

    def _draw(self, board: _Board, run_id: str, attack: str, revisions: Revisions, now: float) -> None:
        """Bring the board up to date: at least to `revisions`, which were read before."""
        view = self._views.view(run_id, fresh=True) if run_id else None
        glance = Glance(self._lab, view, view.choose_attack(attack) if view else None, NOTHING, revisions.runs)
        active = bool(view and view.active)
        version = board.version + 1
        changed = False
        due = math.inf
        for drawing in self._drawings:
            key, part = drawing.key(glance), board.parts.get(drawing.name)
            if part is not None and part.key == key:
                continue
            if part is not None and active and now < part.drawn_at + drawing.every_s:
                due = min(due, part.drawn_at + drawing.every_s)
                continue
            value = orjson.dumps(drawing.draw(glance))
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
    """Where the page's script asks: `/lab/news`; an answer without content if there are no news."""

    def tell(request: Request) -> Response:
        run, attack, seen = (request.query_params.get(name, "") for name in ("run", "attack", "seen"))
        body = news.poll(run, attack, seen)
        fresh = {"Cache-Control": "no-store"}
        if body is None:
            return Response(status_code=204, headers=fresh)
        return Response(body, media_type="application/json", headers=fresh)

    return Route("/lab/news", readable(tell, home))


def _newer(revisions: Revisions, board: _Board) -> bool:
    return revisions.runs > board.revisions.runs or revisions.run > board.revisions.run


def _answer(board: _Board, seen: str, stale: bool) -> bytes | None:
    """What changed on the board since `seen`. On a `stale` one the page must not rest, whatever it shows."""
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

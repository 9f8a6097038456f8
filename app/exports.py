"""The routes under `/lab/`: the page's own script, style and plotly.js, and the downloads of a run.

They are served from here, so that nothing comes from another machine, and directly to the reader: files that a Gradio
handler returns are put into a cache which every visitor can read.
"""

import csv
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.services import (
    ASSETS,
    SCORE_COLUMNS,
    STEP_COLUMNS,
    Lab,
    RunNotFoundError,
    TVaccineError,
    export_run,
    score_rows,
    step_rows,
    without_places,
)

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
CHUNK = 1 << 16


def routes(lab: Lab) -> list[BaseRoute]:
    """Everything under `/lab/`."""

    def config(request: Request) -> Response:
        run = lab.run(request.path_params["run"])
        return attachment(lab.repeatable(run.id)[0].to_yaml(), f"{run.id}.yaml", "application/yaml")

    def steps(request: Request) -> Response:
        run = lab.run(request.path_params["run"])
        rows = step_rows(lab.store.events(run.id, kinds=("step",)), lab.store.jobs(run.id))
        return attachment(csv_text(STEP_COLUMNS, rows), f"{run.id}-steps.csv", "text/csv")

    def scores(request: Request) -> Response:
        run = lab.run(request.path_params["run"])
        rows = score_rows(lab.store.events(run.id, kinds=("eval",)))
        return attachment(csv_text(SCORE_COLUMNS, rows), f"{run.id}-scores.csv", "text/csv")

    def bundle(request: Request) -> Response:
        """The whole export, or with `?state=` one model's adapter and card."""
        run = lab.run(request.path_params["run"])
        state = request.query_params.get("state")
        with tempfile.TemporaryDirectory() as scratch:
            folder = export_run(lab.store, run.id, Path(scratch) / "export")
            root = folder / "states" / state if state else folder
            if state and state not in lab.states(run.id):
                raise RunNotFoundError(f"This run has no saved model {state!r}.", remedy="Choose one that is listed.")
            file = zipped(root)
        name = f"{run.id}-{state.replace('/', '-')}.zip" if state else f"{run.id}.zip"
        return StreamingResponse(chunks(file), media_type="application/zip", headers=disposition(name))

    return [
        *(Route(f"/lab/{path.name}", static(path)) for path in (ASSETS / "lab.css", ASSETS / "lab.js", PLOTLY)),
        Route("/lab/runs/{run}/config.yaml", readable(config, lab.store.home)),
        Route("/lab/runs/{run}/steps.csv", readable(steps, lab.store.home)),
        Route("/lab/runs/{run}/scores.csv", readable(scores, lab.store.home)),
        Route("/lab/runs/{run}/export.zip", readable(bundle, lab.store.home)),
    ]


def static(path: Path) -> Callable[[Request], Response]:
    """A file of the page; a browser that has it only asks whether it changed."""

    def serve(_: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return serve


def readable(serve: Callable[[Request], Response], home: Path) -> Callable[[Request], Response]:
    """`serve`, with errors answered by message and remedy, in which a fixed name replaces the data folder `home`."""

    def answer(request: Request) -> Response:
        try:
            return serve(request)
        except TVaccineError as error:
            status = 404 if isinstance(error, RunNotFoundError) else 500
            return PlainTextResponse(without_places(f"{error}\n{error.remedy}\n", home), status_code=status)

    return answer


def disposition(name: str) -> dict[str, str]:
    """Header that makes a browser save the answer under `name`."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def attachment(content: str, name: str, media_type: str) -> Response:
    """Text to be saved under `name`."""
    return Response(content, media_type=media_type, headers=disposition(name))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def zipped(folder: Path) -> IO[bytes]:
    """Everything in `folder` as a zip, in a file that is deleted when it is closed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - `chunks` closes it
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    file.seek(0)
    return file


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The file's bytes; closes it at the end."""
    with file:
        while block := file.read(CHUNK):
            yield block

"""The pages: the runs of the remote, one run, a check of it.

Owns: addresses, and what each page is made of. Does not own: who may see it (``door``), what it asks the remote
(``listing``, ``run_page``), or how it looks (``templates``).

Invariant: a page begins at once, and says so while it waits for the remote; a part that fails says why, and the parts
before it stay.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from artifactsync._version import __version__
from artifactsync.errors import ArtifactSyncError
from artifactsync.naming import validate_run_name
from artifactsync.report.page import STYLE
from artifactsync.ui.door import Door
from artifactsync.ui.listing import list_names, names_now, summarise
from artifactsync.ui.remote import Trouble, trouble_of
from artifactsync.ui.rendering import make_environment
from artifactsync.ui.run_page import RunPage
from artifactsync.ui.verification import Verifications

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from artifactsync.ui.remote import Remote

MAX_SUMMARIES = 50
"""Runs that one request may ask about."""
_MAX_FORM_BYTES = 4096
_STATIC = Path(__file__).with_name("static")


class Site:
    """The application of one remote.

    Args:
        remote: Where the runs are.
        name: Tells this server from others on this machine; the port.
        first_answer_s: Seconds that a page's beginning may wait for the remote's first answer, so that its status can
            say what it was; it is 200 where it came later.
    """

    def __init__(self, remote: Remote, *, name: str, first_answer_s: float = 1.0) -> None:
        self.door = Door(self._refusal, name=name)
        """Who may come in."""
        self._remote = remote
        self._first_answer_s = first_answer_s
        self._verifications = Verifications(remote)
        self._templates = make_environment(
            remote=remote.url, form_token=self.door.form_token, version=__version__, now=_now
        )

    def application(self) -> ASGIApp:
        """What a server runs."""
        routes = [
            Route("/", self._runs),
            Route("/names", self._names),
            Route("/summaries", self._summaries),
            Route("/runs/{run_name}", self._run),
            Route("/runs/{run_name}/verify", self._verification, methods=["GET"]),
            Route("/runs/{run_name}/verify", self._verify, methods=["POST"]),
            Route("/runs/{run_name}/verify/progress", self._progress),
            Route("/report.css", self._report_style),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]
        handlers = {HTTPException: self._refused, ArtifactSyncError: self._failed, Exception: self._failed}
        made = Starlette(routes=routes, exception_handlers=handlers)
        made.router.redirect_slashes = False
        return self.door.guard(made)

    async def _runs(self, request: Request) -> Response:
        wanted = _wanted(request)
        title = "runs"
        return await self._page(title, [lambda: self._render("runs.html", listed=list_names(self._remote, wanted))])

    async def _names(self, request: Request) -> Response:
        wanted = _wanted(request)
        return JSONResponse(await self._remote.ask(lambda: names_now(self._remote, wanted, _now())))

    async def _summaries(self, request: Request) -> Response:
        names = [validate_run_name(name) for name in request.query_params.getlist("run")[:MAX_SUMMARIES]]
        return JSONResponse(await self._remote.ask(lambda: summarise(self._remote, names, _now())))

    async def _run(self, request: Request) -> Response:
        run_name = validate_run_name(request.path_params["run_name"])
        page = RunPage(self._remote, run_name, now=_now())
        verification = self._verifications.of(run_name)
        parts = [
            lambda: self._render("run.html", page=page, verification=verification),
            lambda: self._render("totals.html", page=page),
            lambda: self._render("metrics.html", page=page),
            lambda: self._render("checkpoints.html", page=page),
            lambda: self._render("files.html", page=page),
        ]
        return await self._page(run_name, parts)

    async def _verification(self, request: Request) -> Response:
        run_name = validate_run_name(request.path_params["run_name"])
        verification = self._verifications.of(run_name)
        is_running = verification is not None and verification.ended_at is None
        shown = {"run_name": run_name, "verification": verification, "now": _now()}
        return HTMLResponse(
            self._render("head.html", title=f"verify {run_name}", refresh=1 if is_running else None)
            + self._render("verification.html", **shown)
            + self._render("foot.html")
        )

    async def _progress(self, request: Request) -> Response:
        verification = self._verifications.of(validate_run_name(request.path_params["run_name"]))
        return JSONResponse(verification.to_json(_now()) if verification else {"is_running": False})

    async def _verify(self, request: Request) -> Response:
        run_name = validate_run_name(request.path_params["run_name"])
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                raise HTTPException(413, "the form is too long")
        form = parse_qs(body.decode("ascii", "replace"))
        if not self.door.is_own_form(request, form.get("form_token", [""])[0]):
            raise HTTPException(403, "this form did not come from a page of this server; load the run's page again")
        self._verifications.begin(run_name, is_deep="deep" in form)
        return RedirectResponse(f"/runs/{run_name}/verify", 303)

    async def _report_style(self, request: Request) -> Response:  # noqa: ARG002 (starlette's signature)
        return Response(STYLE, media_type="text/css")

    async def _page(self, title: str, parts: Sequence[Callable[[], str]]) -> Response:
        """A page whose parts follow each other as the remote answers."""
        first = asyncio.ensure_future(self._part(parts[0]))
        await asyncio.wait({first}, timeout=self._first_answer_s)
        known = first.result()[1] if first.done() else None

        async def body() -> AsyncIterator[str]:
            yield self._render("head.html", title=title, refresh=None) + self._render("waiting.html")
            text, trouble = await first
            yield text
            said = {trouble.message} if trouble else set[str]()
            for part in parts[1:] if trouble is None else ():
                yield self._render("waiting.html")
                text, trouble = await self._part(part)
                if trouble is None or trouble.message not in said:
                    yield text
                said |= {trouble.message} if trouble else set()
            yield self._render("foot.html")

        return StreamingResponse(body(), known.status if known else 200, media_type="text/html")

    async def _part(self, make: Callable[[], str]) -> tuple[str, Trouble | None]:
        """A part of a page, or why there is none."""
        try:
            return await self._remote.ask(make), None
        except Exception as error:  # noqa: BLE001 (whatever it is, the page says it)
            trouble = trouble_of(error)
            return self._render("trouble.html", trouble=trouble), trouble

    async def _refused(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 (starlette's signature)
        status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        words = {404: "there is no such page", 405: "this page cannot be asked in this way"}
        message = words.get(status, detail)
        return self._refusal(Trouble(message=message, hint="go to the list of runs", status=status))

    async def _failed(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 (starlette's signature)
        return self._refusal(trouble_of(error))

    def _refusal(self, trouble: Trouble) -> Response:
        parts = [self._render("head.html", title="artifactsync", refresh=None)]
        parts += [self._render("trouble.html", trouble=trouble), self._render("foot.html")]
        return HTMLResponse("".join(parts), trouble.status)

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)


def _wanted(request: Request) -> str:
    return request.query_params.get("q", "")[:200]


def _now() -> datetime:
    return datetime.now(timezone.utc)

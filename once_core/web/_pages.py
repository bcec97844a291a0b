"""The pages of the dashboard. What blocks is done in threads; a GET changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from once_core._clock import elapsed
from once_core.errors import (
    ConfigurationError,
    KeyDerivationError,
    OnceError,
    StoreUnavailableError,
)
from once_core.explain import Explanation, explain
from once_core.web._cards import cards_of
from once_core.web._census import Census, Row, Surveyor
from once_core.web._gate import Gate, forget_session, read_form, root_of
from once_core.web._recent import Happened, Recent, attention, figures_of, mark_of
from once_core.web._records import Record, Standing, find, free, guard_of, standing
from once_core.web._view import HERE, page, part

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from once_core.cli.program import Program

__all__ = ["Dashboard"]

STATES = ("running", "waiting", "kept")

ROWS = 50
"""Units on a page."""

SHOWN = 200
"""Events on a page."""

LIVE = 25.0
"""Seconds after which a live connection ends and the browser makes a new one: a host that wants to
stop waits no longer for it, and a session that has ended is noticed."""

BEAT = 1.0
"""Seconds between two looks of a live connection."""


class Dashboard:
    """Answers requests about one program.

    Args:
        program: The user's.
        allow_release: Whether units may be freed.
    """

    def __init__(self, program: Program, *, allow_release: bool) -> None:
        self._program = program
        self._allow_release = allow_release
        self._surveyor = Surveyor(program)
        self._recent = Recent(program)
        self._has_token = False

    def app(self, token: str | None, allowed_hosts: Sequence[str], invitation: str = "") -> ASGIApp:
        """The ASGI app, behind its gate.

        Args:
            token: That opens it; None where somebody else sees to that.
            allowed_hosts: Names under which it may be reached.
            invitation: Opens it once, as ``/?token=``.
        """
        self._has_token = token is not None
        routes = [
            Route("/", self.overview),
            Route("/units", self.units),
            Route("/unit", self.unit),
            Route("/events", self.events),
            Route("/events/live", self.live),
            Route("/explain", self.explain, methods=["GET", "POST"]),
            Route("/release", self.release, methods=["GET", "POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
        handlers = {OnceError: self._away, HTTPException: self._refused}
        inner = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # its type wants `Exception`
        return Gate(inner, self._login, token, allowed_hosts, invitation)

    # what is held

    async def overview(self, request: Request) -> Response:
        """All tasks at a glance."""
        census, happened = await run_in_threadpool(self._look)
        figures = figures_of(happened)
        cards = await run_in_threadpool(cards_of, self._program, census, figures)
        return self._page(
            request,
            "overview",
            census=census,
            cards=[card for card in cards if not card.is_idle],
            idle=[card.task for card in cards if card.is_idle],
            figures=figures[""],
            has_events=bool(happened),
            warnings=attention(happened),
            rows=self._rows(census.rows[:10]),
        )

    async def units(self, request: Request) -> Response:
        """What is held, the oldest first."""
        task, state = (request.query_params.get(name, "") for name in ("task", "state"))
        census = await run_in_threadpool(self._surveyor.census)
        found = [
            row
            for row in census.rows
            if task in ("", row.task) and (state not in STATES or _is_in(row, state))
        ]
        last = max(0, (len(found) - 1) // ROWS)
        number = min(_number(request.query_params.get("page", "")), last)
        return self._page(
            request,
            "units",
            census=census,
            rows=self._rows(found[number * ROWS : (number + 1) * ROWS]),
            count=len(found),
            number=number,
            last=last,
            task=task,
            state=state if state in STATES else "",
            tasks=sorted({*self._program.guards, *census.tasks}),
            states=STATES,
        )

    async def unit(self, request: Request) -> Response:
        """One unit of work."""
        key = request.query_params.get("key", "")
        record, happened = await run_in_threadpool(self._find, key)
        own = [each for each in happened if each.event.key == key]
        return self._page(
            request,
            "unit",
            status=200 if record.is_there else 404,
            record=record,
            preview=next((each.event.preview for each in own if each.event.preview), ""),
            happened=own[::-1][:20],
            is_released="released" in request.query_params,
        )

    # what people do

    async def release(self, request: Request) -> Response:
        """Ask whether to free a unit of work (GET), and free it (POST)."""
        if not self._allow_release:
            raise HTTPException(
                403, "Nothing is released here: this dashboard was started without --allow-release."
            )
        if request.method != "POST":
            return await self._ask(request, request.query_params, "")
        fields = await read_form(request)
        key, holder_id = fields.get("key", ""), fields.get("holder", "")
        record, _ = await run_in_threadpool(self._find, key)
        is_running = any(
            each.state == "running" and each.message_id == holder_id for each in record.holders
        )
        if is_running and fields.get("sure") != "yes":
            return await self._ask(
                request,
                fields,
                "Not freed: it runs, and the box that says you know was not ticked.",
            )
        if not holder_id:
            raise HTTPException(
                400, "Not freed: the form names no holder; `once release --force` needs none."
            )
        who = _who(request)
        answer = await run_in_threadpool(free, record, holder_id, who=who)
        if answer.status != "released":
            now = f"{answer.holder_id} holds it now" if answer.holder_id else "it is free already"
            return await self._ask(request, fields, f"Not freed from {holder_id}: {now}.")
        path = f"{root_of(request.scope)}/unit?{urlencode({'key': key, 'released': 1})}"
        return RedirectResponse(path, status_code=303)

    async def _ask(self, request: Request, fields: Mapping[str, str], said: str) -> Response:
        record, _ = await run_in_threadpool(self._find, fields.get("key", ""))
        wanted = fields.get("holder", "")
        found = [each for each in record.holders if wanted in ("", each.message_id)]
        return self._page(
            request,
            "release",
            status=409 if said else 200,
            record=record,
            holder=next(iter([*found, *record.holders]), None),
            said=said,
        )

    async def explain(self, request: Request) -> Response:
        """Ask what would become of a call, and say it; its arguments are not shown again."""
        told, said, task = None, "", request.query_params.get("task", "")
        if request.method == "POST":
            fields = await read_form(request)
            task = fields.get("task", "")
            try:
                args, kwargs = _arguments(fields.get("arguments", ""))
                told = await run_in_threadpool(self._explain, task, args, kwargs)
            except (ConfigurationError, KeyDerivationError) as error:
                said = str(error)
        return self._page(
            request,
            "explain",
            status=422 if said else 200,
            tasks=sorted(self._program.guards),
            task=task,
            told=told,
            said=said,
        )

    async def logout(self, request: Request) -> Response:
        """Sign out."""
        await read_form(request)
        return forget_session(request)

    # what happens

    async def events(self, request: Request) -> Response:
        """What happened just now, the newest first."""
        wanted = _Wanted.of(request)
        happened = await run_in_threadpool(self._recent.look)
        found = [each for each in happened if wanted.fits(each)]
        return self._page(
            request,
            "events",
            happened=found[::-1][:SHOWN],
            has_events=bool(happened),
            count=len(found),
            newest=happened[-1].id if happened else "0-0",
            task=wanted.task,
            only=wanted.only,
            tasks=sorted({*self._program.guards, *(each.event.task for each in happened)} - {""}),
        )

    async def live(self, request: Request) -> Response:
        """Each new event as it comes, as server-sent events."""
        if "wsgi_environ" in request.scope:  # it would keep one of few threads
            return Response(status_code=204)  # do not ask again
        after = request.headers.get("last-event-id") or request.query_params.get("after", "")
        headers = {"x-accel-buffering": "no"}
        told = self._tell(request, mark_of(after), _Wanted.of(request))
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    async def _tell(
        self, request: Request, mark: tuple[int, int], wanted: _Wanted
    ) -> AsyncIterator[str]:
        until = elapsed() + LIVE
        yield "retry: 1000\n\n"
        while elapsed() < until:
            try:
                new = await run_in_threadpool(self._recent.after, mark)
            except OnceError:
                yield "event: away\ndata:\n\n"
                return
            for each in new[-SHOWN:]:
                mark = each.mark
                if wanted.fits(each):
                    row = part(request, "rows", "event_row", each).replace("\n", " ")
                    yield f"id: {each.id}\nevent: told\ndata: {row}\n\n"
            await anyio.sleep(BEAT)

    # in threads

    def _look(self) -> tuple[Census, Sequence[Happened]]:
        return self._surveyor.census(), self._recent.look()

    def _find(self, key: str) -> tuple[Record, Sequence[Happened]]:
        record = find(self._program, key)
        if record is None:
            raise HTTPException(404, "That is no key of this program.")
        return record, self._recent.look()

    def _explain(self, task: str, args: list[object], kwargs: dict[str, object]) -> Explanation:
        guard = self._program.guard(task)
        try:
            return explain(guard, args, kwargs)
        except StoreUnavailableError:
            raise
        except Exception as error:
            is_ours = isinstance(error, KeyDerivationError)
            if is_ours and not callable(guard.options.key):
                raise
            # code of users: what it says can hold the arguments
            theirs = error.__cause__ if is_ours else error
            raise KeyDerivationError(
                f"{guard.task}: these arguments give no key, {type(theirs).__name__}. What it says "
                "can hold arguments: `once explain` shows it, and this page does not.",
                task=guard.task,
            ) from None

    # answers

    def _page(self, request: Request, name: str, *, status: int = 200, **facts: object) -> Response:
        around = {
            "program": self._program.name,
            "here": str(request.scope["path"]).removeprefix(root_of(request.scope)),
            "allow_release": self._allow_release,
            "has_token": self._has_token,
        }
        return page(request, name, {**around, **facts}, status=status)

    def _login(self, request: Request, said: str) -> Response:
        facts = {"said": said, "program": self._program.name}
        return page(request, "login", facts, status=401, headers={"www-authenticate": "Bearer"})

    def _away(self, request: Request, error: OnceError) -> Response:
        return self._page(request, "away", status=503, said=str(error))

    def _refused(self, request: Request, error: HTTPException) -> Response:
        return self._page(
            request, "refused", status=error.status_code, code=error.status_code, said=error.detail
        )

    def _rows(self, rows: Sequence[Row]) -> list[tuple[Row, list[Standing]]]:
        """Units with, for each holder, what is wrong with it."""
        found = []
        for row in rows:
            guard = guard_of(self._program, row.task)
            found.append((row, [standing(holder, guard) for holder in row.holders]))
        return found


class _Wanted(NamedTuple):
    """Which events a page shows."""

    task: str
    only: str

    @staticmethod
    def of(request: Request) -> _Wanted:
        query = request.query_params
        return _Wanted(query.get("task", ""), query.get("only", ""))

    def fits(self, happened: Happened) -> bool:
        """Whether it is one of them."""
        return self.task in ("", happened.event.task) and (
            self.only != "warnings" or bool(happened.warning)
        )


def _is_in(row: Row, state: str) -> bool:
    return any(holder.state == state for holder in row.holders)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else 0  # noqa: PLR2004  # digits


def _arguments(text: str) -> tuple[list[object], dict[str, object]]:
    """A list is by position, an object by name, anything else the only one."""
    try:
        found = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):
        raise ConfigurationError(
            "The arguments are no JSON: write a list for arguments by position, [42, true], or an "
            'object for those by name, {"order_id": 42}.'
        ) from None
    if isinstance(found, dict):
        return [], found
    return (found if isinstance(found, list) else [found]), {}


def _who(request: Request) -> str:
    """Whoever asks, for the event and the log: one line of it."""
    user = request.scope.get("user")
    name = "" if user is None else str(getattr(user, "display_name", user))
    environ = request.scope.get("wsgi_environ") or {}
    address = request.client.host if request.client else environ.get("REMOTE_ADDR", "")
    words = (f"{name} " if name else "") + f"at {address or 'an unknown address'}"
    return "".join(c if c.isprintable() else "?" for c in words)[:200]

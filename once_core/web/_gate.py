"""Who may look: the Host header, tokens, sessions and forms, and the headers of every answer.

A session is a cookie that holds a time, a random number and their HMAC under the token: it says
nothing of the token, and every process that knows the token knows it. The token of a form is an
HMAC under the session. Tokens have 16 characters or more, so guessing one needs no brake.
Where the app around it lets people in there is no token, and so no secret that all processes know:
a session is then what the browser keeps and other pages cannot read, and the Origin header decides.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from once_core._clock import wall
from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate", "forget_session", "form_token", "read_form", "root_of"]

COOKIE = "once_session"
LIFE = 12 * 3600
"""Seconds for which a session is valid."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@\s]+)(?::\d+)?")

SHORTEST = 16
"""Characters of a token."""

MOST_OF_A_FORM = 100_000
"""Bytes."""

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # not no-referrer: with that browsers say "Origin: null" of our own forms
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer."""


class Gate:
    """Lets through what may pass, and gives every answer its headers; an ASGI app.

    Args:
        app: What is behind it. Finds its session as ``scope["once.session"]``.
        login_page: Answers somebody who has to sign in.
        token: That opens it; None where whoever mounts it lets nobody in who may not look.
        allowed_hosts: Names under which it may be reached.
        invitation: Opens it once, as ``/?token=``; empty for none.

    Raises:
        ConfigurationError: The token is too short.
    """

    def __init__(
        self,
        app: ASGIApp,
        login_page: Callable[[Request, str], Response],
        token: str | None,
        allowed_hosts: Sequence[str],
        invitation: str = "",
    ) -> None:
        if token is not None and len(token) < SHORTEST:
            raise ConfigurationError(
                f"the dashboard's token has {len(token)} characters, and whoever can reach it can "
                f"guess; give {SHORTEST} or more: "
                "python -c 'import secrets; print(secrets.token_urlsafe())'",
                option="token",
            )
        self._app = app
        self._login_page = login_page
        self._token = token
        self._hosts = {host.lower() for host in allowed_hosts}
        self._invitation = invitation
        self._key = hashlib.sha256(b"once web session " + (token or "").encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        session = known = self._session(request)
        answer = self._refused(request)
        try:
            if answer is None and not self._may_pass(request, session):
                session, answer = await self._at_the_door(request)
        except HTTPException as error:
            answer = PlainTextResponse(f"{error.detail}\n", error.status_code)
        if answer is None and not session:
            session = self._new_session()  # its pages have forms
        scope["once.session"] = session
        new = session if session != known else ""
        await (answer or self._app)(scope, receive, _with_headers(scope, send, new))

    def _refused(self, request: Request) -> Response | None:
        host = _host(request.headers)
        if host not in self._hosts:
            return PlainTextResponse(
                f"400: this dashboard does not answer to the name {host[:100]!r}; if it should: "
                "once web --allowed-host NAME, or make_app(allowed_hosts=[...])\n",
                status_code=400,
            )
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin is not None:
            here = (request.headers.get("host") or "").lower()
            if urlsplit(origin).netloc.lower() != here:
                return PlainTextResponse(
                    f"403: the form was sent by a page of {origin[:100]!r}, and not of this host "
                    f"({here!r}); a proxy in front must pass the Host header on as it is\n",
                    status_code=403,
                )
        return None

    def _may_pass(self, request: Request, session: str) -> bool:
        path = _path(request)
        if self._token is None or path.startswith("/static/"):
            return True
        if path == "/login" or (self._invitation and "token" in request.query_params):
            return False
        return bool(session) or self._is_token(_bearer(request.headers))

    async def _at_the_door(self, request: Request) -> tuple[str, Response]:
        """Somebody who is not in yet: with the token, with an invitation, or with nothing."""
        home = RedirectResponse(root_of(request.scope) + "/", status_code=303)
        given = request.query_params.get("token", "")
        if self._invitation and given:
            if not _is_same(given, self._invitation):
                return "", self._login_page(request, "This link is not valid.")
            self._invitation = ""  # it stays in the history of the shell and of the browser
            return self._new_session(), home
        if request.method == "POST" and _path(request) == "/login":
            fields = await _fields(request)
            if self._is_token(fields.get("token", "")):
                return self._new_session(), home
            return "", self._login_page(request, "That is not the token.")
        return "", self._login_page(request, "")

    def _is_token(self, given: str) -> bool:
        return self._token is not None and _is_same(given, self._token)

    def _new_session(self) -> str:
        head = f"{int(wall())}.{secrets.token_urlsafe(16)}"
        return f"{head}.{self._mac(head)}"

    def _session(self, request: Request) -> str:
        """That of the browser, if it is one; else nothing."""
        found = request.cookies.get(COOKIE, "")
        return found if self._is_valid(found) else ""

    def _is_valid(self, session: str) -> bool:
        head, _, mac = session.rpartition(".")
        since = head.partition(".")[0]
        is_ours = _is_same(mac, self._mac(head)) and since.isdecimal()
        return is_ours and 0 <= wall() - int(since) < LIFE

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def root_of(scope: Scope) -> str:
    """The path at which the app is mounted; empty for none."""
    return str(scope.get("root_path", "")).rstrip("/")


def form_token(scope: Scope) -> str:
    """What a form of this session must carry."""
    session = str(scope.get("once.session", ""))
    return hmac.new(session.encode(), b"once web form", hashlib.sha256).hexdigest()


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form that a page of this session has sent.

    Raises:
        HTTPException: It has not, or is too large.
    """
    fields = await _fields(request)
    has_session = bool(request.scope.get("once.session"))
    if not (has_session and _is_same(fields.get("form", ""), form_token(request.scope))):
        raise HTTPException(
            403, "This form is from another session, or too old: open its page again."
        )
    return fields


def forget_session(request: Request) -> Response:
    """Sign out: the browser forgets its session."""
    response = RedirectResponse(root_of(request.scope) + "/", status_code=303)
    response.delete_cookie(COOKIE, path=root_of(request.scope) or "/")
    return response


async def _fields(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Only forms are read here.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_OF_A_FORM:
            raise HTTPException(413, "That is too much for a form.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError as error:
        raise HTTPException(400, "That is no form.") from error


def _is_same(given: str, expected: str) -> bool:
    """In constant time: how long it takes says nothing of how much was right."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _host(headers: Headers) -> str:
    """The name in the Host header, without its port; empty if that is no name."""
    found = _HOST.fullmatch((headers.get("host") or "").lower())
    return found[1] if found else ""


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _path(request: Request) -> str:
    """Below the path at which the app is mounted."""
    return str(request.scope["path"]).removeprefix(root_of(request.scope))


def _with_headers(scope: Scope, send: Send, session: str) -> Send:
    """Adds the headers of every answer, and the cookie of a new session."""
    root = root_of(scope)
    is_static = str(scope["path"]).startswith(f"{root}/static/")
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    cookie = (
        f"{COOKIE}={session}; Path={root or '/'}; Max-Age={LIFE}; HttpOnly; SameSite=Strict{secure}"
    )

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["cache-control"] = "no-cache" if is_static else "no-store"
            if session and not is_static:
                headers.append("set-cookie", cookie)
        await send(message)

    return sending

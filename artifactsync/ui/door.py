"""Who may come in: the person to whom the command printed the address, and nobody else.

Loopback alone keeps nobody out: another user of this machine can connect, and so can any web page that is open in the
user's own browser. So the address carries a token, which the browser gets as a cookie; a request must be addressed to
this machine by a name of loopback (a page elsewhere that has its own name point here is refused: DNS rebinding); and
a form must come from a page of ours.

Owns: ``Door``, and the headers that every answer has. Does not own: what is behind it (``site``).

Invariant: without the token there is nothing but the style sheet and the refusal.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse

from artifactsync.ui.remote import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_OPEN_TO_ALL = ("/static/", "/report.css")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # not no-referrer: then a form's Origin would be "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every answer says to the browser."""


class Door:
    """Lets requests through to an application, or refuses them.

    Args:
        refusal: The page of a refusal.
        name: Tells this server's cookie from those of others on this machine: browsers keep cookies by host, not by
            port.
    """

    def __init__(self, refusal: Callable[[Trouble], Response], *, name: str) -> None:
        self.token = secrets.token_urlsafe(24)
        """What the printed address carries."""
        self.form_token = secrets.token_urlsafe(24)
        """What every form of ours carries."""
        self.cookie = f"artifactsync-{name}"
        """The cookie's name."""
        self._refusal = refusal
        self._session = secrets.token_urlsafe(24)
        self._passes: set[str] = set()

    def make_pass(self) -> str:
        """A token that lets in once. For a browser that we start: its command line is there for all to read."""
        made = secrets.token_urlsafe(24)
        self._passes.add(made)
        return made

    def is_own_form(self, request: Request, form_token: str) -> bool:
        """Whether a POST comes from a page of ours: it has our token, and the browser does not say otherwise."""
        origin = request.headers.get("origin")
        is_ours = origin is None or urlsplit(origin).netloc == request.headers["host"]
        return is_ours and _is_same(form_token, self.form_token)

    def guard(self, application: ASGIApp) -> ASGIApp:
        """The application behind the door."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(HEADERS)
                await send(message)

            answer = self._answer(Request(scope))
            await (answer or application)(scope, receive, send_with_headers)

        return guarded

    def _answer(self, request: Request) -> Response | None:
        """What is said at the door; None lets the request through."""
        if not _LOOPBACK.fullmatch(request.headers.get("host", "")):
            message, hint = "this page is reached as 127.0.0.1 or localhost alone", "open the address that was printed"
            return self._refusal(Trouble(message=message, hint=hint, status=421))
        if request.url.path.startswith(_OPEN_TO_ALL) or _is_same(request.cookies.get(self.cookie, ""), self._session):
            return None
        token = request.query_params.get("token", "")
        if not (_is_same(token, self.token) or self._takes_pass(token)):
            message, hint = "this page is for whoever started it", "open the address that `artifactsync ui` printed"
            return self._refusal(Trouble(message=message, hint=hint, status=403))
        inside = RedirectResponse("/", 303)  # away from the address with the token in it
        inside.set_cookie(self.cookie, self._session, httponly=True, samesite="lax", path="/")
        return inside

    def _takes_pass(self, token: str) -> bool:
        found = next((made for made in self._passes if _is_same(token, made)), None)
        self._passes.discard(found or "")
        return found is not None


def _is_same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())

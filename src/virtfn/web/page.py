"""`GET /`: the page that shows a lab. It is files of this package alone, and holds nothing of the lab.

    index.html   what is there before anything is known      main.js       once a second: ask, and show
    page.css     light and dark, wide and narrow              lab.js        the token, and how the lab is asked
    icon.svg                                                  history.js    counters become rates
                                                              dom.js, functions.js, panels.js, dialog.js  what is shown

Its scripts ask with the token as every client does, and write what they are told as text. The browser is told to run
and load nothing else (`Content-Security-Policy`), and to take no text for markup (Trusted Types).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from virtfn.api.dropreasons import DROP_REASONS
from virtfn.web.door import Door

__all__ = ["PATHS", "add_page"]

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in (
            "page.css",
            "icon.svg",
            "main.js",
            "lab.js",
            "history.js",
            "dom.js",
            "functions.js",
            "panels.js",
            "dialog.js",
        )
    },
}
_REASONS = "/page/reasons.json"
PATHS = (*_FILES, _REASONS)
"""What needs no token."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


def add_page(app: FastAPI, _: Door) -> None:
    """Add the page to the application."""
    for path, name in _FILES.items():
        app.add_api_route(path, _giver(name), methods=["GET"], include_in_schema=False)

    @app.get(_REASONS, include_in_schema=False)
    async def reasons() -> Response:
        return JSONResponse({name: reason.what for name, reason in DROP_REASONS.items()})


def _giver(name: str) -> Callable[[], Awaitable[Response]]:
    kind = _KINDS["." + name.rpartition(".")[2]]
    text = files("virtfn.web").joinpath("page", name).read_text(encoding="utf-8")

    async def give() -> Response:
        return Response(text, media_type=kind, headers={"Content-Security-Policy": _POLICY})

    return give

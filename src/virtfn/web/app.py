"""The application: guard, routes, and the pages that others add.

A page is a function that gets the application and the door, and adds its routes; it is named in `PAGES`. A path in
`FREE` needs no token: it must hold nothing of the lab.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from virtfn import __version__
from virtfn.web.door import Ask, Door
from virtfn.web.guard import Guard, refusal
from virtfn.web.methods import method_router
from virtfn.web.metrics import add_metrics
from virtfn.web.page import PATHS, add_page
from virtfn.web.stream import event_router

__all__ = ["FREE", "PAGES", "make_app"]

PAGES: tuple[Callable[[FastAPI, Door], None], ...] = (add_page, add_metrics)
FREE = ("/openapi.json", *PATHS)


def make_app(ask: Ask, token: str, port: int) -> FastAPI:
    """Make the application for one lab. ask: puts a question to it; token: of who may ask; port: where it listens."""
    app = FastAPI(
        title="virtfn",
        version=__version__,
        summary="A lab that runs, as a service: the requests of its control socket, over HTTP on loopback.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    door = Door(ask)
    app.include_router(method_router(door))
    app.include_router(event_router(door))
    for add in PAGES:
        add(app, door)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(HTTPException, _no_such)
    app.add_middleware(Guard, token=token, port=port, free=FREE)
    return app


async def _wrong(_: Request, error: Exception) -> Response:
    """Say in a line what is wrong with a query or a header."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    key = ".".join(str(part)[:64] for part in first.get("loc", ()))
    return refusal(400, f"{key}: {first.get('msg', 'is wrong')}", "EINVAL")


async def _no_such(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such path", 405: "the path does not take this method"}
    return refusal(status, words.get(status, str(error)), "ENOENT" if status == 404 else "EINVAL")

"""Routes for each request there is: `POST /api/METHOD`, its params as JSON, its answer as JSON.

Requests whose answer comes with descriptors have none: only the control socket hands them over.

What they take and answer is described by the typed requests themselves, and so is the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import is_dataclass
from typing import Any, get_args

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, create_model
from starlette.responses import Response

from virtfn.api.session.requests import REQUESTS
from virtfn.api.session.requests import Request as LabRequest
from virtfn.machine.ports import VirtfnError
from virtfn.web.described import described
from virtfn.web.door import Door
from virtfn.web.guard import Document, refusal

__all__ = ["Described", "Refusal", "answer", "method_router", "refuse"]

_STATUS = {
    "EINVAL": 400,
    "ERANGE": 400,
    "EPERM": 403,
    "EACCES": 403,
    "ENOENT": 404,
    "ENODEV": 404,
    "EMSGSIZE": 413,
    "EIO": 500,
    "EOPNOTSUPP": 501,
    "EAGAIN": 503,
    "ESHUTDOWN": 503,
    "": 503,
    "ETIMEDOUT": 504,
}
_CONFLICT = 409

Described = dict[int | str, dict[str, Any]]
Refusal = create_model("Refusal", error=(dict[str, str], ...))
"""What who is refused gets: a message and the errno's name."""


def refuse(error: VirtfnError) -> Response:
    """Make the answer to what the lab refuses. A lab that is gone: 503."""
    return refusal(_STATUS.get(error.errno_name, _CONFLICT), str(error), error.errno_name)


async def answer(door: Door, method: str, params: dict[str, object] | None = None) -> Response:
    """Ask the lab, and answer with what it says."""
    try:
        return Document(await door.ask(method, params))
    except VirtfnError as error:
        return refuse(error)


def method_router(door: Door) -> APIRouter:
    """Make the routes of all requests that HTTP can answer, and `GET /snapshot`."""
    router = APIRouter()
    for kind in REQUESTS:
        if kind.hands:
            continue
        router.add_api_route(
            f"/api/{kind.method}",
            _endpoint(door, kind),
            methods=["POST"],
            operation_id=kind.method,
            summary=(kind.__doc__ or kind.method).strip().splitlines()[0],
            responses=_answers(kind),
            openapi_extra={"requestBody": {"content": {"application/json": {"schema": _params(kind)}}}},
        )

    @router.get("/snapshot", summary="Read what guests, functions and cards have counted.")
    async def snapshot() -> Response:
        return await answer(door, "session.snapshot")

    return router


def _endpoint(door: Door, kind: type[LabRequest[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def take(request: Request) -> Response:
        try:
            body = await request.body()
            params = await request.json() if body else {}
        except (ValueError, RecursionError):
            return refusal(400, "the body is no JSON", "EINVAL")
        if not isinstance(params, dict):
            return refusal(400, "the body is an object of params", "EINVAL")
        try:
            kind.from_params(params)  # what is wrong is said here, and nobody else asked
        except VirtfnError as error:
            return refuse(error)
        return await answer(door, kind.method, params)

    return take


def _answers(kind: type[LabRequest[object]]) -> Described:
    """Describe what a request is answered."""
    refused = {"model": Refusal, "description": "refused: why, and the name of the errno"}
    held = next((get_args(base)[0] for base in getattr(kind, "__orig_bases__", ()) if get_args(base)), None)
    answers: Described = {"4XX": refused, "5XX": refused}
    answers[200] = (
        {"description": "done"} if held in (None, object) else {"model": described(held), "description": "done"}
    )
    return answers


def _params(kind: type[LabRequest[object]]) -> dict[str, Any]:
    """Describe what a request takes."""
    if not is_dataclass(kind):
        return {"type": "object"}
    return {**TypeAdapter(kind).json_schema(), "additionalProperties": False}

"""`GET /metrics`: what everybody has counted, as Prometheus reads it."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from starlette.responses import Response

from virtfn.api.metrics import CONTENT_TYPE, render_metrics
from virtfn.api.session.snapshot import Snapshot
from virtfn.machine.ports import VirtfnError
from virtfn.web.door import Door
from virtfn.web.methods import refuse

__all__ = ["add_metrics"]


def add_metrics(app: FastAPI, door: Door) -> None:
    """Add the route. sriov: with the names of the SR-IOV network metrics exporter, too."""

    @app.get("/metrics", summary="Read all counters, in Prometheus' text format.", response_class=Response)
    async def metrics(sriov: bool = False) -> Response:
        try:
            snapshot = cast(Snapshot, await door.ask("session.snapshot"))
            return Response(render_metrics(snapshot, sriov=sriov), media_type=CONTENT_TYPE)
        except VirtfnError as error:
            return refuse(error)

"""``/health``, ``/metrics``, ``/version`` and ``/v1/models``: what is asked by who watches, and by clients first."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

import afn_kernels
from afn_model.serve.errors import ApiError
from afn_model.serve.server import Server, server_of
from afn_model.serve.step_thread import EngineDied

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
router = APIRouter()


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Whether questions are answered. The engine is not asked: it may be in a long step.

    Raises:
        ApiError: 503, its thread has ended or a step takes longer than ``Settings.step_seconds``.
    """
    server = server_of(request)
    threads = [server.thread] if server.voice is None else [server.thread, server.voice]
    busy = False
    for thread in threads:
        if not thread.alive:
            raise EngineDied(thread.name)
        since = thread.stepping_since
        busy |= since is not None
        seconds = 0.0 if since is None else time.monotonic() - since
        if seconds > server.settings.step_seconds:
            raise ApiError(503, f"a step of the {thread.name} has taken {seconds:.0f} s so far", code="engine_stuck")
    return {"status": "ok", "busy": busy}


@router.get("/version")
async def version(request: Request) -> dict[str, Any]:
    return {"version": afn_kernels.__version__, "system_fingerprint": server_of(request).fingerprint}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(server_of(request).metrics.text(), media_type=PROMETHEUS)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(server_of(request))]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Raises:
    ApiError: 404, no such model.
    """
    server = server_of(request)
    server.check_model(name)
    return _model(server)


def _model(server: Server) -> dict[str, Any]:
    return {
        "id": server.settings.name,
        "object": "model",
        "created": server.started,
        "owned_by": "afn",
        "max_model_len": server.processor.max_positions,
    }

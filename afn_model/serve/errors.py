"""Errors as OpenAI's API writes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

GONE = 499  # what logs call a client that did not wait for its answer
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP: 400 bad field, 401 no key, 404 no such model or recording, 408 too slow, 413 too large, 415 not
            audio that is read, 422 audio that cannot be decoded, 429 too many requests, 503 not ready.
        message: one sentence: what was wrong, what is expected.
        param: the field, such as ``messages[2].content[0]``.
        code: a word that programs may look at.
        retry_after: seconds after which to try again, for 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error: a ValueError is the request's fault, anything else the server's, whose words
    may name files and are not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, "the server could not answer this request", code="internal_error")


def add_handlers(app: FastAPI) -> None:
    """Errors of every route become OpenAI's."""

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})  # which methods there are
        return response

    @app.exception_handler(RequestValidationError)
    async def misread(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [part for part in first["loc"] if part != "body"]
        param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
        return ApiError(400, f"{param}: {first['msg']}", param=param or None).response()

    @app.exception_handler(ValueError)
    async def wrong(_: Request, error: ValueError) -> JSONResponse:
        return as_api_error(error).response()

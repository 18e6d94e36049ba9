"""Every refusal as RFC 9457 problem+json: one sentence that says what was wrong and what to do, never a stack trace."""

import logging
from http import HTTPStatus
from typing import Any, Final

import falcon
import falcon.asgi
import msgspec

from gotask.errors import GotaskError, NotConfigured, Unauthorized

TYPE: Final = "application/problem+json"
logger = logging.getLogger("gotask.server")


class Problem(Exception):
    """A refusal that HTTP knows and the operations do not: a wrong method, a foreign host."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


def body(status: int, title: str, detail: str) -> bytes:
    return msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})


def install(app: falcon.asgi.App[Any, Any]) -> None:
    """Answer whatever a responder of `app` raises."""
    app.add_error_handler(Exception, _on_surprise)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(GotaskError, _on_refusal)
    app.add_error_handler(Problem, _on_problem)


def _answer(resp: falcon.asgi.Response, status: int, title: str, detail: str, headers: dict[str, str]) -> None:
    resp.status = status
    resp.text = None
    resp.data = body(status, title, detail)
    resp.content_type = TYPE
    resp.set_headers(headers)


async def _on_problem(_req: Any, resp: falcon.asgi.Response, error: Problem, _params: Any, **_: Any) -> None:
    _answer(resp, error.status, HTTPStatus(error.status).phrase, str(error), error.headers)


async def _on_refusal(_req: Any, resp: falcon.asgi.Response, error: GotaskError, _params: Any, **_: Any) -> None:
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if type(error).http == NotConfigured.http:
        logger.error("%s", error)
    _answer(resp, error.http, error.title, str(error), headers)


async def _on_http_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, _params: Any, **_: Any
) -> None:
    headers = dict(error.headers or {})
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        detail = f"{req.method} is not possible at {req.path}; possible are: {headers.get('Allow', 'none')}."
    elif isinstance(error, falcon.HTTPNotFound):
        detail = f"There is nothing at {req.path}; GET /api/v1/openapi.json lists what there is."
    else:
        detail = error.description or f"The request is not acceptable: {error.title}."
    _answer(resp, error.status_code, HTTPStatus(error.status_code).phrase, detail, headers)


async def _on_surprise(req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, _: Any, **__: Any) -> None:
    logger.error("%s %s failed", req.method, req.path, exc_info=error)
    _answer(resp, GotaskError.http, GotaskError.title, str(GotaskError()), {})

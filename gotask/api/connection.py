"""One HTTP connection, with what uvicorn lacks: a time for each part of a request, and bounds for its head.

Without them a client that never finishes its request keeps its connection, and its memory, for ever.
"""

import asyncio
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gotask.api import problem

HEAD_S: Final = 10.0  #: seconds from connecting, or from a request's first byte, to the end of its headers
BODY_S: Final = 18.0  #: seconds from there to the end of its body; both together stay below half a minute
HEADERS_MAX: Final = 100
HEADER_MAX: Final = 8192  #: bytes of one header, name and value, and of the request line
HEAD_MAX: Final = HEADERS_MAX * HEADER_MAX  #: bytes of an unfinished head that are kept


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, whose callbacks come from the parser as it reads."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _refusal: tuple[int, str] = (400, "That is not HTTP; send an HTTP/1.1 request.")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm(HEAD_S)  # stray bytes between two requests end uvicorn's own keep-alive timer
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_MAX and not self.transport.is_closing():
            self._refuse(431, f"The headers are larger than {HEAD_MAX} bytes; send fewer.")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._timer is None:
            self._arm(HEAD_S)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > HEADER_MAX:
            self._refusal = (414, f"The address is longer than {HEADER_MAX} bytes; shorten it.")
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) + len(value) > HEADER_MAX or len(self.headers) >= HEADERS_MAX:
            self._refusal = (431, f"At most {HEADERS_MAX} headers of {HEADER_MAX} bytes each are accepted; send fewer.")
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._arm(BODY_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words do not help
        self._refuse(*self._refusal)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self._arm(BODY_S)
            return
        part, seconds = ("headers", HEAD_S) if self._in_head else ("body", BODY_S)
        self._refuse(408, f"The {part} did not arrive within {seconds:g} seconds; send the request again, faster.")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what never became a request of the application, unless it has begun to answer itself; then hang up."""
        self._disarm()
        between = self.cycle is None or self.cycle.response_complete
        if between or (not self._in_head and not self.cycle.response_started):
            self.transport.write(_response(status, detail))
        self.transport.close()


def _response(status: int, detail: str) -> bytes:
    phrase = HTTPStatus(status).phrase
    body = problem.body(status, phrase, detail)
    head = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {problem.TYPE}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*head, "", ""]).encode() + body

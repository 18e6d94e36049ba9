"""Standard logging for the `gotask` logger alone; the root logger belongs to the program GoTask runs in.

What others wrote (names, errors, payloads) may hold control characters: they are shown as escapes, so that no text can
forge a log line or drive a terminal. Passwords in URLs never come out.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

#: C0 and C1 controls, and what reorders or hides text on a screen: bidirectional marks, separators, zero width
CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
#: a login in a URL. A password with a slash in it is a mistake, and secret all the same; what looks like a port is none
LOGIN: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s:/@]*):(?!\d{1,5}(?:[/?#,;\"'\s)\]}]|$))[^\s\"'<>]*@", re.IGNORECASE
)
QUERY: Final = re.compile(r"(?P<name>[?&;](?:\w+_)?(?:password|passwd|token|secret|api_?key)=)[^&;\s\"']*", re.IGNORECASE)
BEARER: Final = re.compile(r"(?P<name>\bBearer\s+)[^\s\"',]+", re.IGNORECASE)
#: attributes every record has; what a caller adds by `extra=` is the rest
PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def scrub(text: str) -> str:
    """`text` without the passwords of the URLs in it."""
    text = LOGIN.sub(r"\g<scheme>\g<user>:***@", text)
    return BEARER.sub(r"\g<name>***", QUERY.sub(r"\g<name>***", text))


def clean(text: str) -> str:
    """`text` with control characters as escapes: one line, safe on a terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """`time LEVEL logger  message key=value`; a traceback follows, indented, so that no line of it can pass for a record."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        extra = "".join(f" {key}={clean(scrub(str(value)))}" for key, value in extras(record).items())
        line = f"{when} {record.levelname:<7} {record.name}  {clean(scrub(record.getMessage()))}{extra}"
        trace = scrub(self.formatException(record.exc_info)) if record.exc_info else ""
        return "\n    ".join([line, *(clean(part) for part in trace.splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, process, message, what the caller added, error."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": scrub(record.getMessage()),
        }
        for key, value in extras(record).items():
            event[key] = value if isinstance(value, int | float | None) else scrub(str(value))
        if record.exc_info:
            event["error"] = scrub(self.formatException(record.exc_info))
        return json.dumps(event)  # escapes all that is not ASCII, control characters with it


def extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in PLAIN}


def configure(level: str = "info", format: Literal["text", "json"] = "text", stream: TextIO | None = None) -> logging.Logger:
    """Send what GoTask logs to `stream` (standard error), in `format`. Calling it again replaces what it did before."""
    logger = logging.getLogger("gotask")
    for old in [handler for handler in logger.handlers if isinstance(handler.formatter, TextFormatter | JsonFormatter)]:
        logger.removeHandler(old)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return logger

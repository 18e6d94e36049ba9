"""The example tasks, for a node that is given no app: echo, math, email and report."""

import os
import smtplib
import ssl
from datetime import UTC, date, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from statistics import fmean
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Meta

from gotask.app import GoTask
from gotask.context import Context
from gotask.errors import InvalidInput, NotConfigured

SMTP_URL: Final = "GOTASK_SMTP_URL"
SMTP_TIMEOUT_S: Final = 20.0  #: seconds for each step of a delivery: mail servers greet slowly on purpose
PORTS: Final = {"smtp": 25, "smtps": 465}
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
DAYS: Final = {"daily": 1, "weekly": 7, "monthly": 30}

Number = int | float
Row = dict[str, Number | str | None]

app = GoTask()


@app.task
def echo(**payload: Any) -> dict[str, Any]:
    """Answer with the payload."""
    return payload


@app.task(no_retry_on=(InvalidInput,))
def math(operation: Literal["add", "subtract", "multiply", "divide"], a: Number, b: Number) -> dict[str, Number]:
    """Calculate with two numbers."""
    if operation == "divide" and b == 0:
        raise InvalidInput(f"Cannot divide {a} by zero; send a `b` other than 0.")
    try:
        match operation:
            case "add":
                return {"result": a + b}
            case "subtract":
                return {"result": a - b}
            case "multiply":
                return {"result": a * b}
        return {"result": a / b}
    except OverflowError:
        raise InvalidInput(f"The result of {operation} is too large a number; send smaller ones.") from None


@app.task(no_retry_on=(NotConfigured, InvalidInput, smtplib.SMTPAuthenticationError))
def email(
    ctx: Context,
    to: Annotated[str, Meta(min_length=3)],
    subject: str = "",
    body: str = "",
    sender: Annotated[str, Meta(min_length=3)] = "gotask@localhost",
) -> dict[str, str]:
    """Send a plain text mail through the server that GOTASK_SMTP_URL names."""
    server = _server(os.environ.get(SMTP_URL, ""))
    message = EmailMessage()
    message["To"], message["From"] = _address("to", to), _address("sender", sender)
    if "\n" in subject or "\r" in subject:
        raise InvalidInput("subject: a line break would start another header; leave it out.")
    message["Subject"] = subject
    message["Date"] = formatdate()
    # the same for each attempt of a job, so that mail programs show one message if a crash makes it two
    message["Message-ID"] = f"<{ctx.id}@gotask>" if ctx.id else make_msgid("gotask")
    message.set_content(body)
    _deliver(server, message)
    return {"message_id": str(message["Message-ID"]), "to": to}


@app.task(no_retry_on=(InvalidInput,))
def report(
    type: Literal["daily", "weekly", "monthly"], day: date | None = None, rows: list[Row] | None = None
) -> dict[str, Any]:
    """Summarise `rows` over the period that ends with `day` (yesterday, if not given)."""
    last = day or datetime.now(UTC).date() - timedelta(days=1)
    first = last - timedelta(days=DAYS[type] - 1)
    columns: dict[str, list[Number]] = {}
    for row in rows or ():
        for name, value in row.items():
            if isinstance(value, (int, float)):
                columns.setdefault(name, []).append(value)
    return {
        "title": f"{type.capitalize()} report, {first} to {last}" if first != last else f"Daily report, {last}",
        "period": {"from": first, "to": last, "days": DAYS[type]},
        "generated_at": datetime.now(UTC),
        "row_count": len(rows or ()),
        "columns": {
            name: {"count": len(values), "sum": sum(values), "min": min(values), "max": max(values), "mean": fmean(values)}
            for name, values in columns.items()
        },
    }


def _server(url: str) -> SplitResult:
    if not url:
        raise NotConfigured(
            f"No mail server is configured: set {SMTP_URL}, for example to smtp://user:pass@mail.example.com:25."
        )
    server = urlsplit(url)
    try:
        sound = server.scheme in PORTS and server.hostname and (server.port is None or server.port > 0)
    except ValueError:
        sound = False
    if not sound:  # its text is not repeated, as it may hold a password
        raise NotConfigured(f"{SMTP_URL} is not a mail server's URL: write it as smtp://host:25 or smtps://user:pass@host:465.")
    return server


def _address(field: str, text: str) -> Address:
    """One address. What could smuggle in a header or a second recipient does not parse as one."""
    try:
        address = Address(addr_spec=text)
        text.encode("ascii")
    except (ValueError, IndexError, LookupError):
        address = Address()
    if not address.username or not address.domain or any(character in text for character in "\r\n\0,<>"):
        raise InvalidInput(f"{field}: {text[:100]!r} is not one mail address; write it as name@example.com.")
    return address


def _deliver(server: SplitResult, message: EmailMessage) -> None:
    host, port, tls = server.hostname or "", server.port or PORTS[server.scheme], ssl.create_default_context()
    smtps = server.scheme == "smtps"
    with (
        smtplib.SMTP_SSL(host, port, timeout=SMTP_TIMEOUT_S, context=tls)
        if smtps
        else smtplib.SMTP(host, port, timeout=SMTP_TIMEOUT_S)
    ) as session:
        session.ehlo()
        secret = smtps
        if not smtps and session.has_extn("starttls"):
            session.starttls(context=tls)
            session.ehlo()
            secret = True
        if server.username:
            if not secret and host not in LOOPBACK:
                raise NotConfigured(
                    f"{host} offers no encryption for the password in {SMTP_URL}; use smtps://, or leave it out."
                )
            session.login(unquote(server.username), unquote(server.password or ""))
        try:
            session.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            code, answer = next(iter(error.recipients.values()))
            if code < 500:  # "not now": greylisting, a full mailbox
                raise
            raise InvalidInput(f"to: the mail server refuses this address: {code} {answer.decode(errors='replace')}.") from None

"""The example tasks. Mail goes to a real SMTP server on this machine."""

import os
import socket
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from email.policy import default
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from gotask.builtin import app, echo, email, math, report
from gotask.errors import InvalidInput, JobFailed
from gotask.handle import JobHandle
from gotask.states import State
from gotask.testing import inline


class Mailbox:
    """What an SMTP server was sent, and what it is told to answer."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.recipients: list[list[str]] = []
        self.users: list[bytes] = []
        self.refusal = ""

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any) -> str:  # noqa: N802
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.messages.append(message_from_bytes(envelope.content, policy=default))
        self.recipients.append(list(envelope.rcpt_tos))
        return "250 OK"

    def login(self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: LoginPassword) -> AuthResult:
        self.users.append(data.login)
        return AuthResult(success=data.password == b"s3cret/", handled=False)


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = Mailbox()
    server = Controller(box, "127.0.0.1", port, authenticator=box.login, auth_require_tls=False)
    server.start()
    monkeypatch.setenv("GOTASK_SMTP_URL", f"smtp://127.0.0.1:{port}")
    yield box
    server.stop()


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with inline(app):
        yield


def failure(job: JobHandle[Any]) -> str:
    """The last line of a failed job's error. Such jobs must not have been retried."""
    assert job.state is State.FAILED
    assert job.job.retry_count == 0
    with pytest.raises(JobFailed) as failed:
        job.result()
    return str(failed.value)


def test_echo_answers_with_its_payload() -> None:
    assert app.enqueue("echo", {"message": "Hello!", "list": [1, None]}).result() == {"message": "Hello!", "list": [1, None]}
    assert echo.delay().result() == {}


@pytest.mark.parametrize(
    ("operation", "expected"), [("add", 15), ("subtract", 5), ("multiply", 50), ("divide", 2)], ids=lambda value: str(value)
)
def test_math_calculates(operation: str, expected: float) -> None:
    assert app.enqueue("math", {"operation": operation, "a": 10, "b": 5}).result() == {"result": expected}


def test_math_names_its_operations() -> None:
    with pytest.raises(InvalidInput, match="operation: 'modulo' is not one of add, divide, multiply, subtract"):
        app.enqueue("math", {"operation": "modulo", "a": 1, "b": 2})


def test_math_fails_clearly_and_at_once() -> None:
    assert "Cannot divide 1 by zero" in failure(math.delay("divide", 1, 0))
    assert "too large" in failure(math.delay("divide", 10**400, 3))
    assert "$.result is inf" in failure(math.delay("multiply", 1e300, 1e300))


def test_mail_arrives(mailbox: Mailbox) -> None:
    # When a mail with text of many alphabets is sent
    job = app.enqueue("email", {"to": "user@example.com", "subject": "Grüße", "body": "Zeile 1\n\n.\nстрока 4\n"})

    # Then the server got it whole, for that one recipient
    result = job.result()
    (message,) = mailbox.messages
    assert message["Subject"] == "Grüße"
    assert message["To"] == "user@example.com"
    assert message["From"] == "gotask@localhost"
    assert message["Date"]
    assert message["Message-ID"] == f"<{job.id}@gotask>" == result["message_id"]
    assert message.get_content().replace("\r\n", "\n") == "Zeile 1\n\n.\nстрока 4\n"  # type: ignore[attr-defined]  # the default policy's class
    assert mailbox.recipients == [["user@example.com"]]


def test_mail_logs_in_with_the_urls_user(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    port = os.environ["GOTASK_SMTP_URL"].rpartition(":")[2]
    monkeypatch.setenv("GOTASK_SMTP_URL", f"smtp://me%40home:s3cret%2F@127.0.0.1:{port}")
    email.delay("a@example.com").result()
    assert mailbox.users == [b"me@home"]

    # And a wrong password is not tried again and again
    monkeypatch.setenv("GOTASK_SMTP_URL", f"smtp://me:wrong@127.0.0.1:{port}")
    assert "Authentication" in failure(email.delay("a@example.com"))
    assert len(mailbox.messages) == 1


@pytest.mark.parametrize(
    ("to", "subject", "sender", "expected"),
    [
        ("a@example.com\r\nBcc: b@example.com", "", "x@example.com", "to: "),
        ("a@example.com\nb", "", "x@example.com", "to: "),
        ("a@example.com, b@example.com", "", "x@example.com", "to: "),
        ("A <a@example.com>", "", "x@example.com", "to: "),
        ("nobody", "", "x@example.com", "to: "),
        ("a@example.com", "hi\r\nBcc: b@example.com", "x@example.com", "subject: "),
        ("a@example.com", "", "x@example.com\r\nBcc: b@example.com", "sender: "),
    ],
)
def test_mail_cannot_be_made_to_carry_other_headers(
    mailbox: Mailbox, to: str, subject: str, sender: str, expected: str
) -> None:
    assert expected in failure(email.delay(to, subject, "body", sender))
    assert mailbox.messages == []


def test_mail_to_a_refused_address_fails_at_once_and_a_busy_server_is_tried_again(mailbox: Mailbox) -> None:
    mailbox.refusal = "550 no such user"
    assert "550 no such user" in failure(email.delay("a@example.com"))

    mailbox.refusal = "450 greylisted"
    job = email.options(max_retries=2).enqueue("a@example.com")
    assert (job.state, job.job.retry_count) == (State.FAILED, 2)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "No mail server is configured"),
        ("mail.example.com", "is not a mail server's URL"),
        ("http://mail.example.com", "is not a mail server's URL"),
        ("smtp://host:port", "is not a mail server's URL"),
    ],
)
def test_mail_without_a_server_says_so(url: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOTASK_SMTP_URL", url)
    assert expected in failure(email.delay("a@example.com"))


def test_a_report_names_its_period_and_sums_its_rows() -> None:
    rows = [{"shop": "a", "sales": 10, "rate": 0.5}, {"shop": "b", "sales": 20, "rate": None}]
    result = app.enqueue("report", {"type": "weekly", "day": "2030-01-07", "rows": rows}).result()
    assert result["title"] == "Weekly report, 2030-01-01 to 2030-01-07"
    assert result["period"] == {"from": "2030-01-01", "to": "2030-01-07", "days": 7}
    assert result["row_count"] == 2
    assert result["columns"]["sales"] == {"count": 2, "sum": 30, "min": 10, "max": 20, "mean": 15}
    assert result["columns"]["rate"]["count"] == 1


def test_a_daily_report_needs_no_more_than_its_type() -> None:
    result = report.delay("daily").result()
    assert result["title"].startswith("Daily report, 20")
    assert result["columns"] == {}

"""The welcome mail: as a file, and through a real SMTP server on loopback."""

import email
import email.policy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from handlers.email_workers import send_welcome_email
from handlers.events import UserCreated
from supervisor import Reject
from supervisor.context import Context, enter
from tests.support.servers import free_port

EVENT = UserCreated(user_id=7, email="ada@example.com", name="Ada", created_at=datetime(2026, 11, 24, 12, tzinfo=UTC))


class Mailbox:
    """The handler of aiosmtpd: keeps the mails and refuses chosen recipients."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], bytes]] = []
        self.refuse = ""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if self.refuse:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 OK"


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def smtp(mailbox: Mailbox) -> Iterator[Controller]:
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller
    controller.stop()


async def deliver(folder: Path, event: UserCreated = EVENT) -> None:
    """Run the handler as a worker with this state_dir does."""
    enter(Context(app={}, state_dir=folder, worker="host:0", redis_url=""))
    await send_welcome_email(event)


@pytest.fixture(autouse=True)
def no_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMTP_URL", raising=False)


async def test_a_file_without_a_server(tmp_path: Path) -> None:
    await deliver(tmp_path)
    await deliver(tmp_path)  # delivered twice
    assert [path.name for path in (tmp_path / "mail").iterdir()] == ["7.eml"]
    content = (tmp_path / "mail" / "7.eml").read_bytes()
    mail = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert mail["To"] == "ada@example.com" and mail["Message-ID"] == "<welcome-7@example.com>"
    assert mail["Date"].datetime == EVENT.created_at and mail["From"] and mail["Subject"]
    assert "Hello Ada," in mail.get_content()
    assert b"\n" not in content.replace(b"\r\n", b"")


async def test_an_address_that_is_not_ascii(tmp_path: Path) -> None:
    await deliver(tmp_path, UserCreated(user_id=8, email="jürgen@example.com", name="Jürgen"))
    assert (
        "Jürgen"
        in email.message_from_bytes((tmp_path / "mail" / "8.eml").read_bytes(), policy=email.policy.SMTP).get_content()
    )


async def test_by_smtp(tmp_path: Path, smtp: Controller, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{smtp.port}")
    await deliver(tmp_path)
    ((sender, recipients, content),) = mailbox.mails
    assert (sender, recipients) == ("welcome@example.com", ["ada@example.com"])
    assert b"Message-ID: <welcome-7@example.com>" in content
    assert not (tmp_path / "mail").exists()


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
async def test_credentials_of_the_url(tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoginPassword] = []

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        seen.append(data)
        return AuthResult(success=data.password == b"p@ss", handled=False)

    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=False,
    )
    controller.start()
    try:
        monkeypatch.setenv("SMTP_URL", f"smtp://ada:p%40ss@127.0.0.1:{controller.port}")
        await deliver(tmp_path)
        monkeypatch.setenv("SMTP_URL", f"smtp://ada:wrong@127.0.0.1:{controller.port}")
        with pytest.raises(aiosmtplib.SMTPAuthenticationError):
            await deliver(tmp_path)
    finally:
        controller.stop()
    assert (seen[0].login, seen[0].password) == (b"ada", b"p@ss")
    assert len(mailbox.mails) == 1


async def test_refused_for_good_or_for_now(
    tmp_path: Path, smtp: Controller, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{smtp.port}")
    mailbox.refuse = "550 no such user"
    with pytest.raises(Reject, match="no such user"):
        await deliver(tmp_path)
    mailbox.refuse = "451 try again later"
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
        await deliver(tmp_path)
    assert mailbox.mails == []


async def test_no_server_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{free_port()}")
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await deliver(tmp_path)

"""Group `email_workers`: a welcome mail for each new user.

With `[app] smtp_url` it is sent by SMTP: `smtp://[user:password@]host:port` (STARTTLS where the server
offers it) or `smtps://` (TLS from the start). Without, it is written to `<state_dir>/mail/<user id>.eml`.
A message that is delivered twice gives the same file, and by SMTP a mail with the same Message-ID.
"""

import os
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiosmtplib

from handlers.events import UserCreated
from supervisor import Reject, context, handler

SENDER = "welcome@example.com"
#: Less than the handler's own timeout, so that the error says what was waited for.
SMTP_TIMEOUT_S = 30
_PERMANENT = range(500, 600)


@handler("events:user_created", group="email_workers")
async def send_welcome_email(event: UserCreated) -> None:
    """Send the mail, or write it to a file when no server is configured."""
    mail = welcome(event)
    if url := str(context().app.get("smtp_url") or ""):
        await send(mail, url)
    else:
        write(mail, context().state_dir / "mail" / f"{event.user_id}.eml")


def welcome(event: UserCreated) -> EmailMessage:
    """The mail, the same for each delivery of the event."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = SENDER
    mail["To"] = event.email
    mail["Subject"] = "Welcome"
    mail["Date"] = event.created_at or datetime.now(UTC)
    mail["Message-ID"] = f"<welcome-{event.user_id}@example.com>"
    mail.set_content(f"Hello {event.name or event.email},\n\nyour account is ready.\n")
    return mail


async def send(mail: EmailMessage, url: str) -> None:
    """Hand the mail to the server at `url`. Raises Reject for an address that the server refuses for good.

    All else that goes wrong is aiosmtplib's or the socket's error, and leads to a retry.
    """
    parts = urlsplit(url)
    try:
        await aiosmtplib.send(
            mail,
            hostname=parts.hostname,
            port=parts.port,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            use_tls=parts.scheme == "smtps",
            timeout=SMTP_TIMEOUT_S,
        )
    except aiosmtplib.SMTPRecipientsRefused as error:
        if all(refused.code in _PERMANENT for refused in error.recipients):
            raise Reject(f"the mail server refuses the address: {error.recipients[0].message}") from error
        raise


def write(mail: EmailMessage, path: Path) -> None:
    """Write the mail to `path` in one go, so that nobody meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_bytes(mail.as_bytes())
    draft.replace(path)

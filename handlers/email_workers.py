"""Group `email_workers`: a welcome mail for each new user.

The environment variable SMTP_URL names the mail server: `smtp://[user:password@]host:port` (STARTTLS where the
server offers it) or `smtps://` (TLS from the start). Without it, each mail becomes a file,
`<state_dir>/mail/<user id>.eml`. A message that is delivered twice writes the same file, or sends a second mail
with the same Message-ID.
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
#: Less than the handler's own time limit, so that the error names the mail server.
SMTP_TIMEOUT_S = 30
_PERMANENT = range(500, 600)


@handler("events:user_created", group="email_workers")
async def send_welcome_email(event: UserCreated) -> None:
    """Send the mail, or write it to a file when SMTP_URL is not set."""
    mail = welcome(event)
    if url := os.environ.get("SMTP_URL"):
        await send(mail, url)
    else:
        write(mail, context().state_dir / "mail" / f"{event.user_id}.eml")


def welcome(event: UserCreated) -> EmailMessage:
    """Return the mail; each delivery of the event makes the same one."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = SENDER
    mail["To"] = event.email
    mail["Subject"] = "Welcome"
    mail["Date"] = event.created_at or datetime.now(UTC)
    mail["Message-ID"] = f"<welcome-{event.user_id}@example.com>"
    mail.set_content(f"Hello {event.name or event.email},\n\nyour account is ready.\n")
    return mail


async def send(mail: EmailMessage, url: str) -> None:
    """Send the mail through the server at `url`. Raises Reject for an address that the server refuses for good.

    Every other error leads to a retry.
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
    """Write the mail to `path` in one step: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_bytes(mail.as_bytes())
    draft.replace(path)

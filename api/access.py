"""Who may do what: the token of a request, the role that it gives, and the audit log of what operators change."""

import hmac
import time
from typing import Any

from starlette.requests import Request

from supervisor.errors import ConfigError
from supervisor.http_bind import is_public
from supervisor.log import service_logger
from supervisor.settings.api_tokens import ApiTokens, file_state, read_tokens
from supervisor.settings.model import ApiSettings, Settings

#: May do everything.
OPERATOR = "operator"
#: May look at everything, and change nothing.
READER = "reader"
#: The service has no token: only this machine can connect.
LOCAL = "local"
#: Files with tokens are looked at this often.
_LOOK_S = 1.0


class Access:
    """The tokens of the service. Those in files are read again when a file has changed."""

    def __init__(self, settings: Settings, log: Any = None) -> None:
        """Raises ConfigError for a file that can't be used."""
        self._settings: ApiSettings = settings.api
        self._log = log or service_logger(settings, "api")
        self._files = [name for name in (settings.api.token_file, settings.api.read_token_file) if name]
        self._public = is_public(settings.api.bind)
        self._states = [file_state(name) for name in self._files]
        self._tokens = self._read()
        self._looked_s = time.monotonic()

    @property
    def needs_token(self) -> bool:
        """True if a request needs a token at all."""
        return bool(self._tokens.operator or self._tokens.reader)

    def role(self, authorization: bytes) -> str | None:
        """Return the role of a request with this header; None: its token is not known."""
        if self._files and time.monotonic() - self._looked_s >= _LOOK_S:
            self._look()
        if not self.needs_token:
            return LOCAL
        kind, _, given = authorization.partition(b" ")
        if kind.lower() != b"bearer":
            return None
        given = given.strip()
        # Both are compared, so that the time says nothing about which one it is.
        operator, reader = (
            bool(token) and hmac.compare_digest(given, token.encode())
            for token in (self._tokens.operator, self._tokens.reader)
        )
        return OPERATOR if operator else READER if reader else None

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        states = [file_state(name) for name in self._files]
        if states == self._states:
            return
        self._states = states
        try:
            self._tokens = self._read()
        except ConfigError as error:
            self._log.warning("tokens not read again", error=str(error))
        else:
            self._log.info("tokens read again", files=self._files)

    def _read(self) -> ApiTokens:
        tokens = read_tokens(self._settings)
        if self._public:
            tokens.require_strong()
        return tokens


def audit(  # noqa: PLR0913 - what a line of the log may have
    request: Request,
    action: str,
    *,
    stream: str | None = None,
    group: str | None = None,
    id: str | None = None,  # noqa: A002 - Redis's own word for it
    schedule: str | None = None,
    workers: int | None = None,
    before: int | None = None,
) -> None:
    """Log a change that was made over HTTP: by whom, from where, and what it was."""
    log = service_logger(request.app.state.service.settings, "api")
    client = request.client.host if request.client else None
    log.info(
        "change over HTTP",
        action=action,
        role=request.scope.get("role"),
        client=client,
        request_id=request.scope.get("request_id"),
        stream=stream,
        group=group,
        id=id,
        schedule=schedule,
        workers=workers,
        before=before,
    )

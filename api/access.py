"""Access control: reads the role of a request from its token, and logs what operators change."""

import hmac
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from supervisor.errors import ConfigError
from supervisor.http_bind import is_public
from supervisor.log import service_logger
from supervisor.settings.api_tokens import ApiTokens, file_state, read_tokens
from supervisor.settings.model import ApiSettings, Settings

from .problems import Problem

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


@contextmanager
def audited(request: Request, action: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Log the change that is made inside: by whom, from where, and what it was. One that is refused is not logged.

    Yields the fields of the line, to which more may be added: stream, group, id, schedule, workers, before.
    """
    try:
        yield fields
    except Problem as problem:
        if problem.kind == "outcome-unknown":
            _log_change(request, action, {**fields, "outcome": "unknown"})
        raise
    _log_change(request, action, fields)


def _log_change(request: Request, action: str, fields: dict[str, Any]) -> None:
    scope, client = request.scope, request.client
    service_logger(request.app.state.service.settings, "api").info(
        "change over HTTP",
        action=action,
        role=scope.get("role"),
        client=client.host if client else None,
        request_id=scope.get("request_id"),
        stream=fields.get("stream"),
        group=fields.get("group"),
        id=fields.get("id"),
        schedule=fields.get("schedule"),
        workers=fields.get("workers"),
        before=fields.get("before"),
        outcome=fields.get("outcome"),
    )

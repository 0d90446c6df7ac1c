"""The tokens of the HTTP service: the operator's and the read-only one, from the settings or from files."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from supervisor.errors import ConfigError
from supervisor.settings.model import ApiSettings

#: A shorter one could be guessed by somebody who can reach the address.
PUBLIC_CHARACTERS_MIN = 16
_FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class ApiTokens:
    """Both tokens; empty: there is none."""

    operator: str = ""
    #: Looks, and changes nothing.
    reader: str = ""

    def require_strong(self) -> None:
        """Raise ConfigError for a token that is too short for an address that other machines can reach."""
        for name, token in (("token", self.operator), ("read_token", self.reader)):
            if 0 < len(token) < PUBLIC_CHARACTERS_MIN:
                raise ConfigError(
                    f"api.{name}: it has {len(token)} characters; where other machines can reach the service it needs"
                    f" at least {PUBLIC_CHARACTERS_MIN}: `openssl rand -hex 16` makes one"
                )


class FileState(NamedTuple):
    """What changes when a file is replaced or written to."""

    inode: int
    size: int
    modified_ns: int


def file_state(name: str) -> FileState | None:
    """Return the state of a file; None where it can't be seen."""
    try:
        status = Path(name).stat()
    except OSError:
        return None
    return FileState(status.st_ino, status.st_size, status.st_mtime_ns)


def read_tokens(settings: ApiSettings) -> ApiTokens:
    """Return the tokens, reading the files that have them. Raises ConfigError."""
    operator = settings.token or _read("token_file", settings.token_file)
    reader = settings.read_token or _read("read_token_file", settings.read_token_file)
    if reader and reader == operator:
        raise ConfigError("api.read_token: it must differ from api.token, or it could do everything")
    return ApiTokens(operator, reader)


def _read(key: str, name: str) -> str:
    if not name:
        return ""
    try:
        with open(name, "rb") as file:
            token = file.read(_FILE_BYTES_MAX).decode().strip()
    except OSError as error:
        raise ConfigError(f"api.{key} = {name!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"api.{key} = {name!r}: it is not text in UTF-8") from None
    if not token or not token.isprintable():
        raise ConfigError(f"api.{key} = {name!r}: it must hold one token on one line")
    return token

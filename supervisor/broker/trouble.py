"""What waiting for Redis will not mend: credentials, rights, certificates, the form of the URL."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from redis.exceptions import AskError, AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROTOCOL = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "HTTP_REQUEST"})
_NO_CLUSTER = "has cluster support disabled"


def lasting(error: BaseException) -> str:
    """In words, with what to do; empty for what may pass by itself."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLError) and (words := _of_tls(cause)):
            return words
        if isinstance(cause, AuthenticationError):
            return f"refuses the credentials: {cause}"
        if isinstance(cause, NoPermissionError):
            return f"refuses a command: {cause}; README.md lists the rights that its user needs"
        if isinstance(cause, AskError):
            return "is a node of a cluster: write redis+cluster:// for redis://"
        if isinstance(cause, ResponseError) and (words := _of_refusal(str(cause))):
            return words
    return ""


def perhaps(url: str, error: BaseException) -> str:
    """A guess to put behind what was said: the two sides don't agree on TLS, and only one of them notices."""
    tls, _, rest = url.partition("://")
    if tls == "unix" or not rest:
        return ""
    if tls.startswith("rediss"):
        return "; a server without TLS keeps silent: write redis:// for rediss://" if _silent(error) else ""
    return "; a server that wants TLS hangs up: write rediss:// for redis://" if _hung_up(error) else ""


def _silent(error: BaseException) -> bool:
    return any(isinstance(cause, TimeoutError | RedisTimeoutError) for cause in causes(error))


def _hung_up(error: BaseException) -> bool:
    told = "\n".join(str(cause) for cause in causes(error))
    return isinstance(error, RedisConnectionError) and ("closed by server" in told or "reset by peer" in told)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what was behind it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"has a certificate that is not trusted: {error.verify_message};"
            " ssl_ca_certs=FILE in the URL names its CA, ssl_check_hostname=false allows another host's name"
        )
    if "CERTIFICATE_REQUIRED" in (error.reason or ""):
        return "wants a certificate of the client: ssl_certfile=FILE&ssl_keyfile=FILE in the URL"
    if error.reason in _PROTOCOL:
        return f"does not speak TLS there, or another one ({error.reason}): redis:// is without"
    return ""


def _of_refusal(text: str) -> str:
    if _NO_CLUSTER in text:
        return "is no cluster: write redis:// for redis+cluster://"
    if "unknown command" in text.lower() and "sentinel" in text.lower():
        return "is no sentinel: its port is 26379, that of Redis 6379"
    return ""

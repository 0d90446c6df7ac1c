"""Classifies errors of Redis and redis-py: their codes, lost connections, transient and permanent refusals."""

import re
import ssl
from collections.abc import Iterator

from redis import exceptions

#: What any command may raise; timeouts of asyncio are OSErrors.
REDIS_FAULTS = (exceptions.RedisError, OSError)
#: The server was not reached or did not answer, as opposed to a refusal.
CONNECTION_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)

#: The code for an error without an answer of the server.
UNREACHABLE = "UNREACHABLE"
#: The code for a right that the user lacks.
NOPERM = "NOPERM"
#: The code of a server that has no memory left.
FULL = "OOM"
#: redis-py strips the code from the errors that it has a class for.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.OutOfMemoryError, FULL),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.NoPermissionError, NOPERM),
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.ExecAbortError, "EXECABORT"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.TryAgainError, "TRYAGAIN"),
)
_CODE = re.compile(r"-?([A-Z][A-Z0-9_]+)(?= |$)")
#: Before Redis 7 a script's error is wrapped: `ERR Error running script (...): @user_script:3: -OOM command ...`.
#: redis-py wraps those of a pipeline: `Command # 1 (XLEN text) of pipeline caused error: ('WRONGTYPE Operation ...',)`.
_WRAPPED_CODE = re.compile(r"""(?:@user_script: ?\d+|of pipeline caused error): [(]?["']?-?([A-Z][A-Z0-9_]+) """)
#: A right that a script lacks has no code: in Redis up to 7, and in later ones and Valkey.
_DENIED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
#: Refusals that end by themselves. AskError is the base of MovedError: the next connection goes to the right node.
_TRANSIENT = (
    exceptions.AskError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
#: More of them, which redis-py has no class for.
_TRANSIENT_CODES = frozenset({"BUSY", "LOADING", "MISCONF", "NOREPLICAS", "UNBLOCKED"})
#: OpenSSL's reasons when the other side does not speak TLS, or another version.
_TLS_MISMATCH = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "HTTP_REQUEST"})
_NO_CLUSTER = "has cluster support disabled"


def code_of(error: BaseException) -> str:
    """Return Redis's error code such as OOM or WRONGTYPE; UNREACHABLE without an answer, ERR without a code."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, exceptions.ResponseError):
        return UNREACHABLE
    text = str(error)
    if any(denied in text for denied in _DENIED_IN_SCRIPT):
        return NOPERM
    found = _CODE.match(text)
    if found and found[1] != "ERR":
        return found[1]
    inside = _WRAPPED_CODE.search(text)
    return inside[1] if inside else "ERR"


def is_transient(error: BaseException) -> bool:
    """Return whether the server refuses everything for a while (loading, failover, busy): send it again later.

    Any other refusal (wrong type, no permission, no memory) concerns one command and must not hold up the others.
    """
    return isinstance(error, _TRANSIENT) or code_of(error) in _TRANSIENT_CODES


def permanent_cause(error: BaseException) -> str:
    """Return what waiting will not mend (credentials, rights, certificates, URL) and the fix; empty otherwise."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLError) and (text := _tls_cause(cause)):
            return text
        if isinstance(cause, exceptions.AuthenticationError):
            return f"refuses the credentials: {cause}"
        if code_of(cause) == NOPERM:
            return f"refuses a command: {cause}; README.md lists the rights that its user needs"
        if isinstance(cause, exceptions.AskError):
            return "is a node of a cluster: write redis+cluster:// for redis://"
        if isinstance(cause, exceptions.ResponseError) and (text := _wrong_server_kind(str(cause))):
            return text
    return ""


_CLIENT_CERTIFICATE = "ssl_certfile=FILE&ssl_keyfile=FILE in the URL"
#: Error texts for a connection that the other end has closed: the reader and the writer notice it in different ways.
_HUNG_UP = ("closed by server", "reset by peer", "Connection lost", "Broken pipe")


def likely_cause(url: str, error: BaseException) -> str:
    """Return a suffix for the error's text where client and server probably disagree on TLS, which one side notices."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix" or not rest:
        return ""
    if not scheme.startswith("rediss"):
        return "; a server that wants TLS hangs up: write rediss:// for redis://" if _hung_up(error) else ""
    if _timed_out(error):
        return "; a server without TLS keeps silent: write redis:// for rediss://"
    # The reset that follows the server's TLS alert may arrive first and hide it.
    if _hung_up(error) and "ssl_certfile=" not in rest:
        return f"; the server closed the connection and may want a certificate of the client: {_CLIENT_CERTIFICATE}"
    return ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the chain of exceptions behind it, each once: a chain may lead back to its beginning."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(cause, TimeoutError | exceptions.TimeoutError) for cause in causes(error))


def _hung_up(error: BaseException) -> bool:
    text = "\n".join(str(cause) for cause in causes(error))
    return isinstance(error, exceptions.ConnectionError) and any(said in text for said in _HUNG_UP)


def _tls_cause(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"has a certificate that is not trusted: {error.verify_message};"
            " ssl_ca_certs=FILE in the URL names its CA, ssl_check_hostname=false allows another host's name"
        )
    if "CERTIFICATE_REQUIRED" in (error.reason or ""):
        return f"wants a certificate of the client: {_CLIENT_CERTIFICATE}"
    if error.reason in _TLS_MISMATCH:
        return f"does not speak TLS there, or another version ({error.reason}): redis:// is without TLS"
    return ""


def _wrong_server_kind(text: str) -> str:
    if _NO_CLUSTER in text:
        return "is not a cluster: write redis:// for redis+cluster://"
    if "unknown command" in text.lower() and "sentinel" in text.lower():
        return "is not a sentinel: its port is 26379, that of Redis 6379"
    return ""

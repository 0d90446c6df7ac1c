"""Hides secrets in output: passwords in URLs, and values of keys that are named like a secret."""

import re
from urllib.parse import unquote_plus

#: A name with one of these parts has a secret value.
_SECRET_WORDS = ("token", "password", "secret", "api_key")
_IN_QUERY = re.compile(r"[?&]([^=&?]*)=")


def is_secret(name: str) -> bool:
    """Return whether a key or parameter with this name holds a secret, and not the name of a file that does."""
    return any(word in name.lower() for word in _SECRET_WORDS) and not name.lower().endswith("_file")


def masked(url: str) -> str:
    """Return the URL with its passwords as `***`, for logs and status.

    It works on the text, not on the parsed URL: a password with an unescaped `@`, `/` or `#` parses as something else
    and must be hidden too. So everything before the last `@` counts as credentials.
    """
    scheme, mark, rest = _without_query_secrets(url).partition("://")
    user, _, host = rest.rpartition("@")
    if ":" not in user or rest.startswith("/"):  # unix:///path has no credentials in front
        return f"{scheme}{mark}{rest}"
    return f"{scheme}{mark}{user.partition(':')[0]}:***@{host}"


def _without_query_secrets(url: str) -> str:
    shown, at = "", 0
    for found in _IN_QUERY.finditer(url):
        if found.start() >= at and is_secret(unquote_plus(found[1])):
            end = url.find("&", found.end())
            shown, at = f"{shown}{url[at : found.end()]}***", len(url) if end < 0 else end
    return shown + url[at:]

"""The checked address of a server: files, pages and messages hold no password and no key."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

SECRETS = frozenset({"key", "api_key", "api-key", "apikey", "token", "access_token", "password", "secret", "sig", "signature"})
WHERE_KEYS_GO = "a key belongs in the environment variable that engine.api_key_env names"


def server_address(text: str) -> str:
    """`text` without a slash at its end. Raises `ValueError` with one sentence that repeats neither user, password nor key.

    >>> server_address("http://localhost:8000/v1/")
    'http://localhost:8000/v1'
    """
    wanted = "engine.base_url: wanted an address as http://localhost:8000/v1"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may repeat the address
        host, port = None, 0
    if "@" in _before_path(text):
        raise ValueError(f"{wanted}, found one with a user or a password in it; {WHERE_KEYS_GO}")
    if not host or port == 0 or parts.scheme not in ("http", "https") or not text.isprintable() or " " in text:
        raise ValueError(f"{wanted}, with a port from 1 to 65535 if any, found {text!r:.80}")
    if any(name.lower() in SECRETS for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError(f"{wanted}, found one with a key in its query; {WHERE_KEYS_GO}")
    return text if parts.query else text.rstrip("/")


def hidden(text: str) -> str:
    """A text whose addresses hide everything before an `@`.

    >>> hidden("wanted a group, found 'http://me:secret@host/v1'")
    "wanted a group, found 'http://***@host/v1'"
    """
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _before_path(text: str) -> str:
    """The part of an address that may hold a user and a password: everything up to the path, the query or the fragment."""
    rest = text.partition("//")[2] or text
    return rest.replace("?", "/").replace("#", "/").partition("/")[0]

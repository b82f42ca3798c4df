"""Who may ask: the bearer token, and pages of other sites.

The token is read from a file or the environment, never from the command line, which all users of a machine see.
"""

import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address

from imgrec.errors import ConfigError, shorten

VARIABLE = "IMGREC_TOKEN"
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 1024


def read_token(token_file: str | None) -> str | None:
    """The token, None where none is set; ConfigError for a file that cannot be read, two tokens, or one that is no token."""
    value = os.environ.get(VARIABLE)
    if token_file is None and value is None:
        return None
    if token_file is None:
        source, hint = VARIABLE, f"Type export {VARIABLE}=$(openssl rand -hex 32), or unset {VARIABLE}."
    else:
        source, hint = f"token_file={token_file}", "Type (umask 077; openssl rand -hex 32 > token), and set token_file=token."
        if value is not None:
            raise ConfigError(f"{source} and {VARIABLE} in the environment are two tokens. Set one of them.")
        try:
            with open(token_file, encoding="ascii") as file:
                value = file.read(2 * LONGEST_TOKEN)  # a device has no end
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
            raise ConfigError(f"{source}: it cannot be read: {reason}. {hint}") from error
    token = (value or "").strip()
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{source}: its token has {len(token):,} characters; expected {SHORTEST_TOKEN} to {LONGEST_TOKEN:,}, ASCII, without spaces. {hint}"
        )
    return token


def readable_by_others(token_file: str) -> bool:
    """Whether users of the machine that are neither its owner nor of its group may read the file."""
    return bool(os.stat(token_file).st_mode & stat.S_IROTH)


def is_allowed(authorization: str | None, token: str | None) -> bool:
    """Whether an Authorization header brings the token. The time that this takes says nothing of the token."""
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    same = compare_digest(_digest(given.strip()), _digest(token))
    return same and scheme.lower() == "bearer"


def _digest(text: str) -> bytes:
    return sha256(text.encode(errors="surrogateescape")).digest()


def find_intruder(method: str, headers: Mapping[str, str], local_host: str | None) -> str | None:
    """The line that refuses a request which a page of another site makes from a browser on this machine; None for all others.

    Browsers say where a POST comes from (Fetch Metadata). They do not where a site's name was pointed at 127.0.0.1 after its page
    was loaded (DNS rebinding), but then Host is that name.
    """
    if method == "POST" and (site := headers.get("sec-fetch-site")) in ("cross-site", "same-site"):
        return f"Sec-Fetch-Site is {site}: pages of other sites may not ask. Set token_file=FILE, and let them bring the token."
    name = headers.get("host", "")
    if local_host is None or _is_local(name, local_host):
        return None
    return f"Host is {shorten(name)}: only localhost and addresses may be asked without a token. Set token_file=FILE."


def _is_local(host: str, local_host: str) -> bool:
    """Whether a Host header names this machine, or an address, which nobody can point elsewhere."""
    name = host.lower().strip()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].rstrip(".")
    if name in ("", "localhost", local_host.lower()) or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

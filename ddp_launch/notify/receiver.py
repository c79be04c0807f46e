"""Where messages go: parses and checks an address, and finds the format of messages that it accepts.

The address is a secret (whoever has it can write there): it is never shown whole.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ddp_core.errors import OptionError

Shape = Literal["slack", "discord", "ntfy", "json"]

OPTION, VARIABLE = "--notify", "DDP_NOTIFY"
EVENTS = ("start", "end", "fail", "stall", "restart")
DEFAULT_EVENTS = frozenset(EVENTS) - {"start"}
NAMES: Mapping[Shape, str] = {"slack": "Slack", "discord": "Discord", "ntfy": "ntfy", "json": "JSON"}
SLACK, DISCORD, NTFY = ("hooks.slack.com", "hooks.slack-gov.com"), ("discord.com", "discordapp.com"), ("ntfy.sh",)
LONGEST_ADDRESS = 2000
ACCEPTED = "expected an address such as https://hooks.slack.com/services/...; slack+https://, discord+https://,"
ACCEPTED += " ntfy+https:// and json+https:// choose the kind of message"


@dataclass(frozen=True, repr=False)
class Receiver:
    """`url`: the address without user and password; `authorization`: the header with them, empty without them."""

    shape: Shape
    url: str
    authorization: str = ""

    @property
    def name(self) -> str:
        """The receiver's name for the user, without the secret part: `Slack (hooks.slack.com)`."""
        return f"{NAMES[self.shape]} ({urlsplit(self.url).hostname})"

    def __repr__(self) -> str:
        return f"Receiver({self.name})"

    def hidden(self, text: str) -> str:
        """The text without the secret parts of the address, which an answer or an error may repeat."""
        parts = urlsplit(self.url)
        for secret in (self.url, parts.path.strip("/"), *parts.path.split("/"), parts.query):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return text


def receiver(text: str, *, given_by: str = OPTION) -> Receiver:
    """The receiver at an address. `given_by`: what to name in an error. Errors: OptionError."""
    refused = f"{given_by} {_shown(text)!r}: "
    found = re.match(r"(?:(slack|discord|ntfy|json)\+)?(https?)://", text, re.IGNORECASE)
    if found is None or len(text) > LONGEST_ADDRESS or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise OptionError(refused + ACCEPTED)
    try:
        parts = urlsplit(f"{found[2].lower()}://{text[found.end() :]}")
        host, port = parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except ValueError:  # a port that is no number, brackets that do not close, a label that is too long
        raise OptionError(f"{refused}the host or port is not valid; {ACCEPTED}") from None
    if not host:
        raise OptionError(f"{refused}the host is missing; {ACCEPTED}")
    place = (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    shape = _asked(found[1]) or _recognised(host, path)
    if shape == "ntfy" and not re.fullmatch(r"[-_A-Za-z0-9]{1,64}", path.rpartition("/")[2]):
        raise OptionError(f"{refused}expected the topic after the host, as in https://ntfy.sh/TOPIC")
    return Receiver(shape, f"{parts.scheme}://{place}{path}{query}", _authorization(parts))


def receivers(text: str) -> tuple[Receiver, ...]:
    """The receivers in the environment variable's value: addresses with blanks between them. Errors: OptionError."""
    return tuple(receiver(word, given_by=VARIABLE) for word in text.split())


def _asked(prefix: str | None) -> Shape | None:
    return next((shape for shape in NAMES if prefix is not None and shape == prefix.lower()), None)


def _recognised(host: str, path: str) -> Shape:
    """The message format of a well-known host; "json" for any other host."""
    if host in SLACK:
        return "slack"
    if host.endswith(tuple(f".{known}" for known in DISCORD)) or host in DISCORD:
        # Discord accepts Slack's messages at a separate address.
        return "slack" if path.rstrip("/").endswith("/slack") else "discord"
    return "ntfy" if host in NTFY else "json"


def _authorization(parts: SplitResult) -> str:
    """USER:PASSWORD@ of the address as a header (RFC 7617)."""
    if parts.username is None and parts.password is None:
        return ""
    words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(words.encode()).decode("ascii")


def _shown(text: str) -> str:
    """The part of an address that is not secret: its beginning up to the host, if that looks like a host."""
    scheme, separator, rest = text.rpartition("://") if text.count("://") == 1 else ("", "", text)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    known = re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\w*)?|localhost(:\w*)?", host) and ("@" not in rest or "@" in authority)
    shown = f"{scheme}{separator}{host if known else ''}"[:100]
    return shown + ("..." if shown != text else "")

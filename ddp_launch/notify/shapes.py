"""Turns a record into the request that a receiver understands. Pure.

Slack    https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks: `text`, split at 4,000 characters;
         &, < and > are escaped, so that no name can mention a channel. Mattermost, Rocket.Chat and Google Chat
         accept the same.
Discord  https://docs.discord.com/developers/resources/webhook: `content`, at most 2,000 characters; mentions are off.
         It refuses urllib's default User-Agent.
ntfy     https://docs.ntfy.sh/publish: as JSON, since headers are not UTF-8. A message of more than 4,096 bytes would
         become an attachment; older servers read no more than that of the JSON either (server.go, transformBodyJSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddp_core import __version__
from ddp_launch.notify.message import Record, lines
from ddp_launch.notify.receiver import Receiver

MARKS = {"start": "▶️", "end": "✅", "fail": "❌", "stall": "⚠️", "restart": "🔁", "test": "👋"}
NTFY_TAGS = {
    "start": "arrow_forward",
    "end": "white_check_mark",
    "fail": "x",
    "stall": "warning",
    "restart": "repeat",
    "test": "wave",
}
URGENT, USUAL = 4, 3
"""Priorities of ntfy: high makes a phone buzz for longer."""
LONGEST_SLACK, LONGEST_DISCORD, LONGEST_NTFY = 3900, 1900, 4000
"""Limits in characters, for ntfy in bytes of the JSON; a little below what each service accepts."""
LONGEST_TITLE = 250


@dataclass(frozen=True)
class Request:
    """An HTTP POST request."""

    url: str
    headers: Mapping[str, str]
    body: bytes


def request(receiver: Receiver, record: Record) -> Request:
    """The record as the receiver understands it."""
    url = receiver.url
    match receiver.shape:
        case "slack":
            content: dict[str, Any] = {"text": _slack(record)}
        case "discord":
            content = {"content": _discord(record), "allowed_mentions": {"parse": []}}
        case "ntfy":
            url, content = _ntfy(url, record)
        case "json":
            content = record
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": f"ddp-launch/{__version__}"}
    if receiver.authorization:
        headers["Authorization"] = receiver.authorization
    return Request(url, headers, _json(content))


def _json(content: Mapping[str, Any]) -> bytes:
    # Characters that UTF-8 cannot encode, as in some file names, must not prevent the message.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def _slack(record: Record) -> str:
    shown = (one.replace("`", "'") for one in (record["title"], *lines(record)))
    head, *facts = (one.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for one in shown)
    return f"{MARKS[record['event']]} *{head}*" + _block(facts, LONGEST_SLACK - len(head))


def _discord(record: Record) -> str:
    head = "".join(f"\\{c}" if c in "\\*_~|>[]()<@#-" else c for c in record["title"].replace("`", "'"))
    facts = [one.replace("`", "'") for one in lines(record)]
    return f"{MARKS[record['event']]} **{head}**" + _block(facts, LONGEST_DISCORD - _units(head))


def _block(facts: Sequence[str], room: int) -> str:
    """The facts in a code block, where no character is special, as many as there is room for."""
    kept: list[str] = []
    for fact in facts:
        room -= _units(fact) + 1
        if room < 0:
            break
        kept.append(fact)
    return "\n```\n" + "\n".join(kept) + "\n```" if kept else ""


def _units(text: str) -> int:
    """Length of a text in UTF-16 code units, as some services count it."""
    return len(text.encode("utf-16-le", "replace")) // 2


def _ntfy(url: str, record: Record) -> tuple[str, dict[str, Any]]:
    base, _, topic = url.partition("?")[0].rpartition("/")
    query = url.partition("?")[2]
    title = record["title"].encode("utf-8", "replace")[:LONGEST_TITLE].decode("utf-8", "ignore")
    message = "\n".join(lines(record)) or title
    content = {
        "topic": topic,
        "title": title,
        "message": message,
        "tags": [NTFY_TAGS[record["event"]]],
        "priority": URGENT if record["event"] in ("fail", "stall") else USUAL,
    }
    while (excess := len(_json(content)) - LONGEST_NTFY) > 0:
        # A character takes up to four bytes, so at least this many are too many.
        message = message[: -max(1, excess // 4)]
        content["message"] = message
    return f"{base}/" + (f"?{query}" if query else ""), content

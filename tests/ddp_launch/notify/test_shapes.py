"""Each shape as its service takes it: within the limits, and with nothing that a name could make it do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ddp_core.redaction import Secrets
from ddp_launch.notify.message import Record, Run, Story
from ddp_launch.notify.receiver import EVENTS, receiver
from ddp_launch.notify.shapes import request

HOSTILE = "<!channel> @everyone `x` ``` *b* & \ud800 <@U1> [a](http://b) \u202e\n\x1b[31m 🎉"


def failed(words: str) -> Record:
    story = Story(Run(program=words, host="box", begin_ms=0.0), EVENTS, Secrets({}))
    plan = {"event": "plan", "plan": {}, "logs": f"/tmp/{words}", "run_folder": None}
    failure = {"event": "failure", "attempt": 0, "rank": 3, "host": "box", "words": "exit code 1", "error": words}
    for event in (plan, {**failure, "remedy": {"advice": words}}):
        assert story.hear(event) is None
    record = story.hear({"event": "end", "status": 1, "monotonic_ms": 5_000.0, "message": words})
    assert record is not None
    return record


@pytest.mark.parametrize("words", [HOSTILE, "🎉" * 5000, "<&>" * 3000, "```" * 3000, "ü" * 4000, "\\" * 4000])
def test_hostile_and_long_words(words: str) -> None:
    record = failed(words)
    slack = sent("slack+https://h/x", record)["text"]
    assert len(slack) <= 4000
    assert "<" not in slack
    assert slack.count("```") == 2
    discord = sent("discord+https://h/x", record)
    assert len(discord["content"].encode("utf-16-le")) <= 2 * 2000
    assert discord["content"].count("```") == 2
    assert discord["allowed_mentions"] == {"parse": []}
    ntfy = sent("ntfy+https://h/x", record)
    assert len(request(receiver("ntfy+https://h/x"), record).body) <= 4096
    assert ntfy["message"].startswith("rank 3 on box: ")
    assert len(ntfy["title"].encode()) <= 250
    assert "\n" not in record["title"] + record["cause"]["error"]
    assert len(json.dumps(sent("https://h/x", record))) < 60_000


def sent(address: str, record: Record) -> Any:
    return json.loads(request(receiver(address), record).body)


def test_ntfy_is_published_at_the_server_with_the_topic_in_the_message() -> None:
    made = request(receiver("ntfy+http://me:pw@box:81/sub/topic-1?auth=x"), failed("Überlauf"))
    assert made.url == "http://box:81/sub/?auth=x"
    assert made.headers["Authorization"] == "Basic bWU6cHc="
    content = json.loads(made.body)
    assert (content["topic"], content["priority"], content["tags"]) == ("topic-1", 4, ["x"])
    assert content["title"] == "Überlauf has failed on box after 5 s"


def test_json_is_the_record_with_what_a_person_reads() -> None:
    record = failed("KeyError: 'x'")
    content = sent("https://example.org/hook", record)
    assert content == record
    assert content["schema"] == "ddp-launch-notification/1"
    assert content["cause"]["rank"] == 3
    assert content["text"].startswith("rank 3 on box: KeyError: 'x' (exit code 1)\nto do: ")

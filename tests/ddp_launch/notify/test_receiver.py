"""The addresses of --notify: what they are taken for, and that none is shown whole."""

from __future__ import annotations

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import parse
from ddp_launch.notify.receiver import receiver


@pytest.mark.parametrize(
    ("address", "shape", "url"),
    [
        ("https://hooks.slack.com/services/T/B/x", "slack", "https://hooks.slack.com/services/T/B/x"),
        ("https://discord.com/api/webhooks/1/x", "discord", "https://discord.com/api/webhooks/1/x"),
        ("https://ptb.discord.com/api/webhooks/1/x?wait=true", "discord", None),
        ("https://discord.com/api/webhooks/1/x/slack", "slack", None),
        ("https://ntfy.sh/topic", "ntfy", None),
        ("https://example.org/hook", "json", None),
        ("https://notdiscord.com/x", "json", None),
        ("slack+https://chat.example.org/hooks/x", "slack", "https://chat.example.org/hooks/x"),
        ("NTFY+HTTP://box:8080/a/topic", "ntfy", "http://box:8080/a/topic"),
        ("json+https://hooks.slack.com/x", "json", None),
        ("https://bücher.example/ü?ä=1#part", "json", "https://xn--bcher-kva.example/%C3%BC?%C3%A4=1"),
        ("http://[::1]:8080/x", "json", "http://[::1]:8080/x"),
        ("https://example.org", "json", "https://example.org/"),
    ],
)
def test_what_an_address_is_taken_for(address: str, shape: str, url: str | None) -> None:
    found = receiver(address)
    assert found.shape == shape
    assert found.url == (url or found.url)
    assert "services" not in repr(found)


def test_user_and_password_are_a_header() -> None:
    found = receiver("ntfy+https://:tk_s3cret@box.example/topic")
    assert found.url == "https://box.example/topic"
    assert found.authorization == "Basic OnRrX3MzY3JldA=="
    assert "tk_" not in repr(found)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "ftp://host/S3CRET",
            "file:///S3CRET",
            "S3CRET",
            "hooks.slack.com/services/S3CRET",
            "https://",
            "https:///S3CRET",
        ),
        *("https://ho st/S3CRET", "https://host/S3\nCRET", "https://host:99999/S3CRET", "https://host:x/S3CRET"),
        *("https://[::1/S3CRET", "https://u:S3/CRET@host/x", "https://ntfy.sh/", "https://ntfy.sh/S3CRET/?x"),
        *(
            "https://u@S3CRET@/x",
            "gotify+https://host/S3CRET",
            "https://host/" + "S3CRET" * 400,
            "https://" + "S3CRET" * 30,
        ),
        "https://host/x?u=ftp://S3CRET\x00",
    ],
)
def test_a_wrong_address_is_one_line_that_does_not_show_it(address: str) -> None:
    with pytest.raises(OptionError, match=r"^--notify '.*': ") as error:
        parse(["--notify", address, "x.py"])
    assert "S3" not in str(error.value)
    assert "CRET" not in str(error.value)


def test_the_variable_has_several_and_the_option_replaces_them() -> None:
    environ = {"DDP_NOTIFY": " https://ntfy.sh/a\thttps://example.org/b "}
    assert [one.shape for one in parse(["x.py"], environ).notify] == ["ntfy", "json"]
    assert [one.url for one in parse(["--notify", "https://ntfy.sh/c", "x.py"], environ).notify] == [
        "https://ntfy.sh/c"
    ]
    with pytest.raises(OptionError, match=r"^DDP_NOTIFY '\.\.\.': "):
        parse(["x.py"], {"DDP_NOTIFY": "s3cret"})


def test_no_host_of_a_run_gets_the_address() -> None:
    options = parse(["--hosts", "a,b", "--notify", "https://ntfy.sh/s3cret", "--notify-on=end", "--cpu", "x.py"])
    assert options.words == ("--cpu",)

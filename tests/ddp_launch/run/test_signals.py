"""Signals to the launcher, sent for real to this process."""

from __future__ import annotations

import signal
import time

import pytest

from ddp_launch.run.signals import REPEATED_S, Interrupts, deferred


class Stop(Exception):
    pass


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)  # its handler has run when this returns; os.kill may give it to another thread


def test_first_signal_raises_and_later_ones_kill() -> None:
    killed = []
    interrupts = Interrupts(lambda number: Stop(number))
    interrupts.kill = lambda: killed.append(True)
    with interrupts.installed():
        with pytest.raises(Stop) as caught:
            send(signal.SIGTERM)
        assert caught.value.args == (signal.SIGTERM,)
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert killed == [True, True]
    assert interrupts.received is signal.SIGTERM, "the first one decides the status"


def test_one_signal_that_arrives_twice_is_no_second_one() -> None:
    killed = []
    interrupts = Interrupts(lambda number: Stop(number))
    interrupts.kill = lambda: killed.append(True)
    with interrupts.installed():
        with pytest.raises(Stop):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert killed == []
        time.sleep(2 * REPEATED_S)
        send(signal.SIGTERM)
    assert killed == [True]


def test_a_signal_while_ranks_start_waits_for_them() -> None:
    interrupts = Interrupts(lambda number: Stop(number))
    done = []
    with interrupts.installed(), pytest.raises(Stop), interrupts.held():
        send(signal.SIGINT)
        done.append("started")
    assert done == ["started"]


def test_a_signal_while_ranks_are_stopped_is_not_forgotten() -> None:
    """A Ctrl-C during the stop before a restart: no further attempt begins."""
    interrupts = Interrupts(lambda number: Stop(number))
    with interrupts.installed():
        interrupts.ending = True
        send(signal.SIGINT)
        interrupts.ending = False
        with pytest.raises(Stop), interrupts.held():
            pytest.fail("ranks were started")


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts(lambda number: Stop(number)).installed():
        send(signal.SIGHUP)


def test_a_signal_behind_the_end_changes_nothing() -> None:
    with Interrupts(lambda number: Stop(number)).installed():
        pass
    send(signal.SIGTERM)
    send(signal.SIGINT)


def test_signals_while_torch_is_imported_are_put_off() -> None:
    done, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, deferred():
        send(signal.SIGTERM)
        done.append("imported")
    assert (done, caught.value.code) == (["imported"], 143)
    assert signal.getsignal(signal.SIGTERM) is before

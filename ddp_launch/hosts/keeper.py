"""The program on each host of a run over ssh: it starts the launcher there, passes its output on, and ends it.

It is sent through ssh, so the host needs nothing but Python. It ends the launcher, and so all ranks, when its standard
input closes, when the other end has been silent for SILENCE_S, or on request. If the keeper is killed, the
kernel kills the launcher, and the launcher's reaper ends the ranks.
"""

from __future__ import annotations

import ctypes
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from datetime import datetime, timezone
from fcntl import ioctl
from functools import partial
from typing import Any

from ddp_launch.hosts import facts
from ddp_launch.hosts.channel import CHUNK_BYTES, MOST_WAITING, Channel, Message
from ddp_launch.hosts.reach import Call, Listener

BEAT_S = 1.0
SILENCE_S = 6.0
"""An end that is silent for so long counts as lost."""
END_S = 2.0
"""How long a launcher may take to end its ranks once the other end is lost; then it is killed."""
OWN_PAUSE_S = 2.0
DRAIN_S = 1.0
WAIT_S = 0.25
PR_SET_PDEATHSIG = 1
OUT, ERR = 1, 2


class Keeper:
    """One host's part of a run. `channel`: the connection with the launcher that was started by hand."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._heard = self._beat = time.monotonic()
        self._listeners: list[Listener] = []
        self._calls: list[Call] = []
        self._reports: Channel | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._outputs: dict[int, int] = {}
        self._terminals: list[int] = []
        self._over = False

    def run(self) -> None:
        """Serve until the run or the connection is over."""
        self._channel.send("hello", python=list(sys.version_info[:3]), clock=_clock(), pid=os.getpid())
        looked = time.monotonic()
        while not self._over and not self._channel.closed and looked - self._heard < SILENCE_S:
            self._wait_and_serve()
            before, looked = looked, time.monotonic()
            if looked - before > OWN_PAUSE_S:
                # This process was paused: what was sent meanwhile has to be read first.
                self._heard = looked
            if self._launcher is not None and self._reports is not None and self._reports.closed:
                self._report_end()
        self.end()
        deadline = time.monotonic() + DRAIN_S
        while self._channel.waiting and not self._channel.closed and time.monotonic() < deadline:
            select.select([], [self._channel.sink], [], WAIT_S)
            self._channel.flush()

    def end(self, patience_s: float = END_S) -> None:
        """End the launcher if it still runs; it ends its ranks, or its reaper does."""
        if self._launcher is None or self._launcher.poll() is not None:
            return
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, END_S)):
            with suppress(OSError):
                self._launcher.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._launcher.wait(wait_s)
                return

    def _wait_and_serve(self) -> None:
        """Wait for any descriptor, serve those that are ready, report finished calls, send a beat."""
        channel = self._channel
        read: dict[Any, Any] = {channel.source: self._receive}
        write: dict[Any, Any] = {channel.sink: channel.flush} if channel.waiting else {}
        if channel.waiting < MOST_WAITING:
            # Otherwise read no more: a blocked screen then blocks the ranks, as it does without ssh.
            read |= {output: lambda output=output: self._pass_on(output) for output in self._outputs}
        if self._reports is not None and not self._reports.closed:
            read[self._reports.source] = self._relay
        for listener in self._listeners:
            read |= {one: partial(listener.serve, one) for one in listener.sockets}
        for call in self._calls:
            for end, event in call.waits_for:
                (read if event == select.POLLIN else write)[end] = lambda call=call, end=end: call.go_on(end)
        ready = select.select(list(read), list(write), [], WAIT_S / 10 if self._calls else WAIT_S)
        for one in ready[0]:
            read[one]()
        for one in ready[1]:
            write[one]()
        # A list, so that each call is asked: asking ends calls that have waited long enough.
        finished = [call.finished() for call in self._calls]
        if self._calls and all(finished):
            channel.send("reached", results=[call.result() for call in self._calls])
            self._calls = []
        if time.monotonic() - self._beat >= BEAT_S:
            self._beat = time.monotonic()
            # Bytes that wait to be sent are a sign of life too.
            if not channel.waiting:
                channel.send("beat")

    def _receive(self) -> None:
        """Call `_on_KIND` for each message from the other end."""
        for message, data in self._channel.receive():
            self._heard = time.monotonic()
            getattr(self, "_on_" + message["kind"].replace("-", "_"))(message, data)

    def _on_beat(self, message: Message, data: bytes) -> None:
        """A sign of life: `_receive` has noted it."""

    def _on_check(self, message: Message, data: bytes) -> None:
        """Answer with the facts of this host. If --sync will fill the folder, make it first."""
        if message["make"]:
            with suppress(OSError):
                os.makedirs(message["make"], exist_ok=True)  # noqa: PTH103
        found = {**facts.versions(message["packages"]), "folder": facts.enter(message["folder"])}
        try:
            # The rendezvous uses a chosen port; the ranks use ports that the system assigns.
            found["free_port"] = self._listen(message["word"], 0)
            found["port"] = self._listen(message["word"], message["port"]) if message["meeting"] else None
        except OSError as error:
            found["listener"] = error.strerror or str(error)
        seen = os.environ.get("SSH_CONNECTION", "").split()[:1]
        self._channel.send("checked", **found, addresses=facts.addresses(), caller=seen, variables=[*os.environ])

    def _listen(self, word: str, port: int | None) -> int:
        """Open a listener for the check of routes; its port."""
        self._listeners.append(made := Listener(word, port))
        return made.port

    def _on_folder(self, message: Message, data: bytes) -> None:
        """Enter the run's folder, after --sync has filled it. Versions may have changed: it may hold this project."""
        self._channel.send("entered", **facts.versions(message["packages"]), folder=facts.enter(message["folder"]))

    def _on_reach(self, message: Message, data: bytes) -> None:
        """Start to call the other hosts; the results follow as "reached"."""
        self._calls = [Call(target) for target in message["targets"]]
        if not self._calls:
            self._channel.send("reached", results=[])

    def _on_start(self, message: Message, data: bytes) -> None:
        """Start the launcher, tied to this process, with a socket for its reports."""
        while self._listeners:
            self._listeners.pop().close()
        ours, its = socket.socketpair()
        os.set_inheritable(its.fileno(), True)
        environment = {**os.environ, **message["environment"]}
        environment[message["variable"]] = message["seat"].replace("FD", str(its.fileno()), 1)
        out, err = self._streams(message)
        kernel, parent = ctypes.CDLL(None), os.getpid()

        def tie() -> None:
            """In the new process: have the kernel kill it when the keeper ends."""
            # Its own process group, for signals, but no new session: a session's leader would adopt a rank's terminal.
            os.setpgid(0, 0)
            kernel.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)

        self._launcher = subprocess.Popen(
            [sys.executable, *message["argv"]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=[its.fileno()],
            preexec_fn=tie,  # this process has one thread
        )
        for descriptor in {out, err}:
            os.close(descriptor)
        its.close()
        both = ours.detach()
        self._reports = Channel(both, both)

    def _on_to_launcher(self, message: Message, data: bytes) -> None:
        """Pass the data on to the launcher."""
        if self._reports is not None:
            self._reports.send_bytes(data)

    def _on_signal(self, message: Message, data: bytes) -> None:
        """Send the signal to the launcher."""
        if self._launcher is not None:
            with suppress(OSError):
                self._launcher.send_signal(message["number"])

    def _on_size(self, message: Message, data: bytes) -> None:
        """Give the launcher's terminals the size of the screen."""
        for terminal in self._terminals:
            with suppress(OSError):
                ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", *message["rows_columns"], 0, 0))

    def _on_close(self, message: Message, data: bytes) -> None:
        """The reader of this stream is gone: close it."""
        for output, stream in [*self._outputs.items()]:
            if stream == message["stream"]:
                del self._outputs[output]
                os.close(output)

    def _on_stop(self, message: Message, data: bytes) -> None:
        """End the launcher; without one, end the keeper."""
        self.end(message["patience_s"])
        if self._launcher is None:
            self._over = True

    def _streams(self, message: Message) -> tuple[int, int]:
        """Descriptors for the launcher's output and error, terminals where the other end has terminals."""
        ends: list[int] = []
        for stream, terminal in ((OUT, message["terminals"][0]), (ERR, message["terminals"][1])):
            if stream == ERR and message["one_place"]:
                ends.append(ends[0])
                continue
            read, write = pty.openpty() if terminal else os.pipe()
            if terminal:
                _make_transparent(write)
                self._terminals.append(read)
            os.set_blocking(read, False)
            self._outputs[read] = stream
            ends.append(write)
        self._on_size(message, b"")
        return ends[0], ends[1]

    def _pass_on(self, output: int) -> bool:
        """Pass one piece of the launcher's output on; whether there was any."""
        try:
            chunk = os.read(output, CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""  # a terminal whose other end is closed
        if chunk:
            self._channel.send("output", chunk, stream=self._outputs[output])
        else:
            del self._outputs[output]
        return bool(chunk)

    def _relay(self) -> None:
        """Pass the launcher's reports on."""
        assert self._reports is not None
        for message, _ in self._reports.receive():
            kind = message.pop("kind")
            self._channel.send(kind, **message)

    def _report_end(self) -> None:
        """The launcher has closed its socket, so it has ended: pass on the rest of its output and its status."""
        assert self._launcher is not None
        with suppress(subprocess.TimeoutExpired):
            code = self._launcher.wait(WAIT_S)
            deadline = time.monotonic() + DRAIN_S
            while self._outputs and time.monotonic() < deadline:
                passed = [self._pass_on(output) for output in [*self._outputs]]
                if not any(passed):
                    time.sleep(WAIT_S / 10)
            self._channel.send("end", code=code)
            self._over = True


def _clock() -> float:
    """Seconds since 1970 by the wall clock."""
    return datetime.now(timezone.utc).timestamp()  # noqa: UP017 (for an old Python, which is refused in words)


def _make_transparent(terminal: int) -> None:
    """Turn translation off: the terminal at the other end translates already."""
    modes = termios.tcgetattr(terminal)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(terminal, termios.TCSANOW, modes)


def main() -> None:
    """Run the keeper over the present standard input and output; afterwards these lead to /dev/null."""
    for number in (signal.SIGHUP, signal.SIGINT):
        # Handled, not ignored: the launcher would inherit SIG_IGN.
        signal.signal(number, lambda number, frame: None)
    source, sink, nowhere = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    keeper = Keeper(Channel(source, sink))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        keeper.run()
    finally:
        keeper.end()

"""Identify processes across machines and reboots."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """The unique identity of a process, even when its PID is reused.

    Attributes:
        host: Host name, for messages.
        pid: Process id.
        machine: The boot id and the PID namespace of `pid`; None if unknown.
        started: Start time in clock ticks since boot; None if unknown.
    """

    host: str
    pid: int
    machine: str | None
    started: int | None

    @classmethod
    def current(cls) -> Process:
        """Return the identity of this process."""
        return cls(socket.gethostname(), os.getpid(), _machine(), _start_of(os.getpid()))

    def is_dead(self) -> bool:
        """Whether it is known to have ended. False for processes of other machines."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # It exists, and belongs to another user.
        started = _start_of(self.pid)
        return None not in (started, self.started) and started != self.started


def _machine() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; -1 if it is a zombie or dead; None if unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if state in "ZX" else int(fields[18])

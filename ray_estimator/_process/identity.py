"""Tell one process from another, across machines and restarts."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """A process, told from every other one, even of the same number.

    Attributes:
        host: Name of its host, for people.
        pid: Its number.
        machine: The boot and the PID namespace in which `pid` means something; None if unknown.
        started: When it began, in clock ticks since the boot; None if unknown.
    """

    host: str
    pid: int
    machine: str | None
    started: int | None

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _machine(), _start_of(os.getpid()))

    def is_dead(self) -> bool:
        """Whether it is known to be dead. Only a process of the same machine can know."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # Another user's: it is there.
        started = _start_of(self.pid)
        return None not in (started, self.started) and started != self.started


def _machine() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; -1 if it has ended, but is still listed; None if unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if state in "ZX" else int(fields[18])

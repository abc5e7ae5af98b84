"""A process beside each machine's ranks that says which of them has died, and that ends the others.

MPI's launchers stop a run when a process is killed, but MPICH's doesn't say which rank that was, and gives
the others no time to. This one is none of its processes: each rank holds a connection to it, which the system
closes when the rank dies, before the others can. It runs this file alone, without the package.
"""

import atexit
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# Seconds that ranks have to connect, and that a launcher has to stop the others, before this does.
PATIENCE, GRACE = 60.0, 5.0


class Sentinel:
    """A rank's connection to its machine's sentinel."""

    def __init__(self, rank: int, hosts: list[str], everyone: Callable[[Any], list[Any]]) -> None:
        self._connection: socket.socket | None = None
        here = [number for number, host in enumerate(hosts) if host == hosts[rank]]
        addresses = everyone(_start(here) if rank == here[0] else None)
        if (address := addresses[here[0]]) is not None:
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(address)
            self._connection.sendall(struct.pack("i", rank))
            self._connection.recv(1)  # it watches: who dies from now on is told from who is killed for it
            atexit.register(self.dismiss)  # a program that ends by itself has not died

    def dismiss(self) -> None:
        """Let it go: what ends from now on ends as it should."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # another rank was first
                self._connection.sendall(DONE)
            self._connection.close()
            self._connection = None


DONE, READY = b"done", b"."


def _start(ranks: list[int]) -> bytes | None:
    """Start a machine's sentinel and return its address, of a kind that only Linux has; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen(len(ranks))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(listener.fileno()), str(len(ranks))],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # launchers kill groups
        )
        process.returncode = 0  # nobody waits for it, and Python need not warn of that
        address: bytes = listener.getsockname()
        return address


def main() -> None:
    """Watch the ranks that connect until one lets this go, or dies."""
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        listener.settimeout(PATIENCE)
        try:
            connections = {c.fileno(): c for c, _ in (listener.accept() for _ in range(int(sys.argv[2])))}
        except TimeoutError:
            return  # they were stopped before
    ranks = {number: struct.unpack("i", c.recv(4))[0] for number, c in connections.items()}
    watched = select.epoll()
    for number in connections:
        watched.register(number, select.EPOLLIN)
    for connection in connections.values():
        with contextlib.suppress(OSError):
            connection.send(READY)
    # Ready ones come in the order in which they became so: the first is who died first.
    first, _ = watched.poll()[0]
    if connections[first].recv(len(DONE)):
        return
    dead = f"rank {ranks[first]} (pid {_pid(connections[first])} on {socket.gethostname()})"
    print(f"gpuconv: {dead} has died; the other ranks are stopped", file=sys.stderr, flush=True)
    end = time.monotonic() + GRACE
    alive = dict(connections)
    while alive and (left := end - time.monotonic()) > 0:
        for number, _ in watched.poll(left):
            if not alive[number].recv(len(DONE)):
                watched.unregister(number)
                del alive[number]
    for connection in alive.values():
        os.kill(_pid(connection), signal.SIGKILL)


def _pid(connection: socket.socket) -> int:
    """Return the process at a connection's other end, as the system knows it."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid


if __name__ == "__main__":
    main()

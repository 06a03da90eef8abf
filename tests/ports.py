"""Ports for servers that are told theirs."""

from __future__ import annotations

import random
import socket

# Below those that Linux gives to connections (from 32,768): one of them may hold the port when, seconds later, the
# server binds it. Above those that Ray gives to its workers (10,002 to 19,999).
_PORTS = range(20_000, 32_768)
_choice = random.SystemRandom().choice  # `random` itself may be seeded alike in each process
_given: set[int] = set()


def free_port() -> int:
    """A port of loopback that is free, another one each time."""
    while True:
        port = _choice(_PORTS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

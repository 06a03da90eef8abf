"""The flow on fake engines, for what surrounds the engines: `python -m tests.fake_flow --config …`, or a deployment."""

from __future__ import annotations

import sys
from functools import partial

from flows import generate as module
from flows.command_line import parse
from tasks.engines.local_pool import LocalLauncher

FAKE = (sys.executable, "-m", "tests.fake_engine")

module.LocalLauncher = partial(LocalLauncher, worker=FAKE)  # type: ignore[assignment,misc]
generate = module.generate

if __name__ == "__main__":
    from flows.own_server import start_ahead
    from flows.terminal import run_in_terminal

    start_ahead()
    sys.exit(run_in_terminal(generate, parse(sys.argv[1:])))

"""All benchmarks under one command.

    python -m tests.benchmarks --list
    python -m tests.benchmarks NAME [--json FILE] [options; --help lists them]
    python -m tests.benchmarks --readme [FILE ...]
                                               takes results over into docs/benchmarks, and writes the README's tables

Each prints a table and keeps its result in build/benchmarks/NAME.json, with the machine and the command.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks import harness, readme


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--list"]:
            for name in harness.names():
                print(f"{name:16}{harness.description(name)}")
        case ["--readme", *results]:
            readme.keep(map(Path, results))
            readme.write()
        case [name, *options] if name in harness.names():
            harness.run(name, options)
        case _:
            print(f"{__doc__}\nBenchmarks: {', '.join(harness.names())}", file=sys.stderr)
            return 0 if arguments in (["-h"], ["--help"]) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

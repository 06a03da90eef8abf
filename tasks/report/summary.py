"""The run's summary in Prefect's UI, as Markdown: verdict, figures, plots as pictures, a few rows, where the files are.

What a model wrote stands in fenced blocks that it cannot end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from tasks.records import Json, ShardManifest, Tally
from tasks.report.figures import plots
from tasks.report.headline import headline
from tasks.report.pictures import pictures
from tasks.report.samples import read_rows
from tasks.storage import Storage

SAMPLES = 3
ERRORS = 3
MOST_ERRORS = 100
"""That are read to find so many of different records."""
MOST_CHARACTERS = 600


def summary(storage: Storage, manifest: Json, shards: Sequence[ShardManifest]) -> str:
    """At most some 100 kB, however large the run is."""
    tally = Tally.model_validate(manifest["tally"])
    folder = f"shards/{manifest['key']}"
    parts = [
        *_gates(manifest),
        *_table(("", "", ""), headline(manifest, tally, shards)),
        *(f"**{title}**\n\n![{title}]({uri})" for title, uri in pictures(plots(shards, tally))),
        *_samples(storage, folder, shards),
        *_errors(storage, folder, shards),
        *_files(storage, manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _gates(manifest: Json) -> Iterator[str]:
    gates = manifest["gates"]
    failed = [gate["line"] for gate in gates if not gate["passed"]]
    yield f"## {len(gates) - len(failed)} of {len(gates)} gates passed"
    yield from (f"- {_cell(line)}" for line in failed)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [head, ("---",) * len(head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _samples(storage: Storage, folder: str, shards: Sequence[ShardManifest]) -> Iterator[str]:
    rows = _first_rows(storage, [f"{folder}/{shard.data.name}" for shard in shards if shard.data.rows], SAMPLES)
    if rows:
        yield "## First samples"
    for row in rows:
        yield f"**record {row['original_index']}, sample {row['sample_id']}** ({_cell(str(row['finish_reason']))})"
        yield f"Prompt\n{_fenced(str(row['prompt']))}"
        yield f"Completion\n{_fenced(str(row['predict']))}"


def _errors(storage: Storage, folder: str, shards: Sequence[ShardManifest]) -> Iterator[str]:
    names = [f"{folder}/{shard.errors.name}" for shard in shards if shard.errors.rows]
    rows = list({row["original_index"]: row for row in _first_rows(storage, names, MOST_ERRORS)}.values())[:ERRORS]
    if rows:
        yield "## First errors"
        cells = ((str(row["original_index"]), row["error"], row["message"][:MOST_CHARACTERS]) for row in rows)
        yield from _table(("record", "error", "message"), cells)


def _files(storage: Storage, manifest: Json) -> Iterator[str]:
    names = [file["name"] for file in manifest["files"].values()]
    yield "## Files"
    yield "\n".join(f"- `{storage.root}/{name}`" for name in ["report.html", *names, "manifest.json"])


def _first_rows(storage: Storage, names: Iterable[str], count: int) -> list[Json]:
    return list(islice((row for name in names for row in read_rows(storage, name)), count))


def _fenced(text: str) -> str:
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _cell(text: str) -> str:
    """Plain text in a table's cell or a line: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))

"""A run's figures in words: what the report and the summary in Prefect's UI begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.records import Json, ShardManifest, Tally
from tasks.report.figures import working_clock


def headline(manifest: Json, tally: Tally, shards: Sequence[ShardManifest]) -> Iterator[tuple[str, str, str]]:
    """The head's figures: name, value, and what it is of."""
    n = manifest["config"]["sampling"]["n"]
    spans = [span for shard in shards for span in shard.timeline]
    working = working_clock(spans).seconds if spans else 0.0
    records = manifest["dataset"]["records"]
    yield "Samples", _count(tally.samples), f"{_count(records)} records × {n}"
    yield "Errors", _count(tally.errors), _percent(tally.errors, tally.samples + tally.errors)
    yield "Completion tokens", _count(tally.completion_tokens), f"{_count(tally.prompt_tokens)} prompt tokens"
    if working:
        rate = sum(span.completion_tokens for span in spans) / working
        yield "Tokens a second", _count(rate), f"over {duration(working)} of generating"
    yield "Duration", duration(manifest["this_run"]["seconds"]), "this run, from start to report"
    if tally.graded:
        yield "Accuracy", _percent(tally.correct, tally.graded), f"{_count(tally.graded)} graded samples"
    if len(tally.pass_at) > 1:
        records = tally.records_graded
        yield f"Pass@{n}", _percent(tally.pass_at[n], records), f"{_count(records)} records with a label"
        yield "Majority vote", _percent(tally.majority_correct, records), f"of {n} samples"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    raise AssertionError(seconds)


def _count(number: float) -> str:
    """Up to six digits in full; 12.3 M and 4.56 G above, three digits of it."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def _percent(count: float, of: float) -> str:
    return f"{100 * count / of:.3g}%" if of else "–"

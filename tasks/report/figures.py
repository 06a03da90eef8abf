"""The report's plots, from the shards' manifests: plotly figures as JSON; colours are the page's, by its theme."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tasks.records import Json, ShardManifest, Span, Tally

BINS = 120
MOST_LINES = 8
"""With more engines than this, a line each would be a tangle: they become the rows of a heatmap."""
MOST_BARS = 240
PAUSE_SECONDS = 60.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: its title, a line that explains it, and plotly's figure. `wide` ones take the page's whole width."""

    name: str
    title: str
    note: str
    figure: Json
    wide: bool = False


def plots(shards: Sequence[ShardManifest], tally: Tally) -> list[Plot]:
    """The plots that this run has something to show for."""
    made = [
        _throughput([span for shard in shards for span in shard.timeline]),
        _lengths("completion", tally.completion_lengths, tally.completion_tokens, tally.samples),
        _lengths("prompt", tally.prompt_lengths, tally.prompt_tokens, tally.samples),
        _counts("finish", "How completions ended", "finish_reason", tally.finish_reasons),
        _counts("errors", "Errors by kind", "samples that could not be made", tally.errors_by_kind),
        _pass_at(tally),
        _shard_seconds(shards),
    ]
    return [plot for plot in made if plot is not None]


@dataclass(frozen=True, slots=True)
class Clock:
    """Time with the pauses between runs cut out: `starts` and `ends` of the stretches in which engines worked."""

    starts: Floats
    ends: Floats

    @property
    def seconds(self) -> float:
        return float((self.ends - self.starts).sum())

    def at(self, when: Floats) -> Floats:
        """Seconds of work before each Unix time."""
        before = np.concatenate([[0.0], np.cumsum(self.ends - self.starts)])
        which = np.clip(np.searchsorted(self.starts, when, side="right") - 1, 0, len(self.starts) - 1)
        inside = np.clip(when - self.starts[which], 0.0, self.ends[which] - self.starts[which])
        return np.asarray(before[which] + inside)


def working_clock(spans: Sequence[Span]) -> Clock:
    """The stretches that the spans cover; gaps up to PAUSE_SECONDS count as work."""
    starts: list[float] = []
    ends: list[float] = []
    for span in sorted(spans, key=lambda span: span.start):
        end = span.start + span.seconds
        if ends and span.start <= ends[-1] + PAUSE_SECONDS:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(span.start)
            ends.append(end)
    return Clock(np.array(starts), np.array(ends))


def _throughput(spans: Sequence[Span]) -> Plot | None:
    spans = [span for span in spans if span.seconds > 0]
    if not spans:
        return None
    clock = working_clock(spans)
    edges = np.linspace(0.0, clock.seconds, BINS + 1)
    unit, name = (3600.0, "hours") if clock.seconds > 3 * 3600 else (60.0, "minutes")
    x = (edges[:-1] + edges[1:]) / 2 / unit
    rates = _rates(spans, clock, edges)
    traces = _lines(x, rates) if len(rates) <= MOST_LINES else _heatmap(x, rates)
    axes = {"xaxis": {"title": {"text": f"{name} of generating"}, "rangemode": "tozero"}, "hovermode": "x unified"}
    if len(rates) <= MOST_LINES:
        axes |= {"yaxis": {"title": {"text": "tokens/s"}, "rangemode": "tozero"}}
    else:
        axes |= {"yaxis": {"type": "category", "autorange": "reversed"}, "hovermode": "closest"}
    note = "Completion tokens a second, by engine"
    if pauses := len(clock.starts) - 1:
        note += f"; {pauses} {'pause' if pauses == 1 else 'pauses'} between runs left out"
    return Plot("throughput", "Throughput", note, _figure(traces, **axes), wide=True)


def _rates(spans: Sequence[Span], clock: Clock, edges: Floats) -> dict[str, Floats]:
    """Tokens a second of each engine in each bin; a span's tokens are spread evenly over it."""
    by_engine: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_engine[span.engine].append(span)
    return {engine: _rate(by_engine[engine], clock, edges) for engine in sorted(by_engine, key=_natural)}


def _rate(spans: Sequence[Span], clock: Clock, edges: Floats) -> Floats:
    made = np.zeros(len(edges))
    starts = clock.at(np.array([span.start for span in spans]))
    ends = clock.at(np.array([span.start + span.seconds for span in spans]))
    for span, start, end in zip(spans, starts, ends, strict=True):
        made += span.completion_tokens * np.clip((edges - start) / max(end - start, 1e-9), 0.0, 1.0)
    return np.diff(made) / np.diff(edges)


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _lines(x: Floats, rates: dict[str, Floats]) -> list[Any]:
    import plotly.graph_objects as go

    return [
        go.Scatter(
            x=x.round(3),
            y=rate.round(1),
            name=engine or "engine",
            mode="lines",
            line={"width": 1.2, "shape": "hvh"},
            stackgroup="engines",
            hovertemplate="%{y:,.0f} tokens/s",
        )
        for engine, rate in rates.items()
    ]


def _heatmap(x: Floats, rates: dict[str, Floats]) -> list[Any]:
    import plotly.graph_objects as go

    z = np.array(list(rates.values())).round(1)
    hover = "%{y}: %{z:,.0f} tokens/s<extra></extra>"
    bar = {"title": {"text": "tokens/s"}, "thickness": 10, "outlinewidth": 0}
    return [go.Heatmap(x=x.round(3), y=list(rates), z=z, zmin=0, hovertemplate=hover, colorbar=bar)]


def _lengths(what: str, counts: dict[int, int], tokens: int, samples: int) -> Plot | None:
    if not counts:
        return None
    edges = _edges(min(counts), max(counts))
    labels = [_bin_label(low, high) for low, high in zip(edges, [*edges[1:], _next_edge(edges[-1])], strict=True)]
    bars = _bars(
        list(range(len(edges))),
        [counts.get(edge, 0) for edge in edges],
        "%{customdata} tokens: %{y:,} samples<extra></extra>",
        labels,
    )
    # A tick stands at the left side of its bar, the bin's lower edge; of many, those at powers of two.
    ticked = [at for at, edge in enumerate(edges) if len(edges) <= 8 or edge.bit_count() <= 1]
    ticks = {"tickvals": [at - 0.5 for at in ticked], "ticktext": [_short_count(edges[at]) for at in ticked]}
    figure = _figure([bars], xaxis={"title": {"text": "tokens"}, "tickangle": 0, **ticks}, bargap=0.08)
    return Plot(what, f"{what.capitalize()} length", f"Samples by tokens; {tokens / samples:,.0f} on average", figure)


def _edges(first: int, last: int) -> list[int]:
    edges = [first]
    while edges[-1] < last:
        edges.append(_next_edge(edges[-1]))
    return edges


def _next_edge(edge: int) -> int:
    """The bin after length_bin's: 0, 1, 2, 3, 4, 6, 8, 12, 16 …"""
    if edge < 4:
        return edge + 1
    power = 1 << (edge.bit_length() - 1)
    return power + power // 2 if edge == power else 2 * power


def _bin_label(low: int, high: int) -> str:
    return str(low) if high == low + 1 else f"{low:,}–{high - 1:,}"


def _counts(name: str, title: str, note: str, counts: dict[str, int]) -> Plot | None:
    if not counts:
        return None
    import plotly.graph_objects as go

    ordered = sorted(counts.items(), key=lambda item: item[1])[-20:]
    total = sum(counts.values())
    bars = go.Bar(
        x=[count for _, count in ordered],
        y=[_plain(kind) for kind, _ in ordered],
        orientation="h",
        text=[f"{count:,}  {100 * count / total:.3g}%" for _, count in ordered],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    widest = max(count for _, count in ordered)
    xaxis = {"visible": False, "range": [0, widest * 1.35]}
    yaxis = {"type": "category", "ticksuffix": "  ", "showgrid": False}
    margin = {"l": 20, "r": 10, "t": 6, "b": 6}
    figure = _figure([bars], xaxis=xaxis, yaxis=yaxis, bargap=0.35, margin=margin, height=20 + 38 * len(ordered))
    return Plot(name, title, note, figure)


def _pass_at(tally: Tally) -> Plot | None:
    if not tally.records_graded or len(tally.pass_at) < 2:
        return None
    import plotly.graph_objects as go

    ks = sorted(tally.pass_at)
    values = [tally.pass_at[k] / tally.records_graded for k in ks]
    line = go.Scatter(
        x=ks, y=values, mode="lines+markers", name="pass@k", hovertemplate="pass@%{x}: %{y:.1%}<extra></extra>"
    )
    voted = tally.majority_correct / tally.records_graded
    vote = go.Scatter(
        x=[ks[0], ks[-1]],
        y=[voted, voted],
        mode="lines",
        name="majority",
        line={"dash": "dot"},
        hovertemplate="majority of all samples: %{y:.1%}<extra></extra>",
    )
    ticks = [k for k in ks if k & (k - 1) == 0 or k == ks[-1]]  # powers of two, and n
    xaxis = {"title": {"text": "k"}, "type": "log", "tickvals": ticks, "ticktext": [str(k) for k in ticks]}
    figure = _figure([line, vote], xaxis=xaxis, yaxis={"tickformat": ".0%", "range": [0, 1.04], "dtick": 0.25})
    return Plot("pass", "pass@k", f"Over {tally.records_graded:,} records with a label, unbiased estimate", figure)


def _shard_seconds(shards: Sequence[ShardManifest]) -> Plot | None:
    """Bars of single shards, or of the means of neighbours where there are too many."""
    if not shards or not any(shard.seconds for shard in shards):
        return None
    size = -(-len(shards) // MOST_BARS)
    groups = [shards[at : at + size] for at in range(0, len(shards), size)]
    means = [round(sum(shard.seconds for shard in group) / len(group), 2) for group in groups]
    labels = [group[0].index for group in groups]
    note = "Seconds from a shard's first request to its manifest" + (f", mean of {size} shards a bar" * (size > 1))
    bars = _bars(labels, means, "shard %{x}: %{y:,.1f} s<extra></extra>")
    axes = {"xaxis": {"title": {"text": "shard"}}, "yaxis": {"title": {"text": "seconds"}}}
    return Plot("shards", "Time a shard", note, _figure([bars], bargap=0.15, **axes))


def _short_count(number: int) -> str:
    return f"{number / 1024:g}k" if number >= 1024 else str(number)


def _bars(x: Sequence[Any], y: Sequence[float], hover: str, labels: Sequence[str] | None = None) -> Any:
    import plotly.graph_objects as go

    return go.Bar(x=x, y=y, hovertemplate=hover, customdata=labels)


def _plain(text: str) -> str:
    """Plotly reads a few HTML tags in its labels; here they are text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _figure(traces: Sequence[Any], **layout: Any) -> Json:
    import plotly.graph_objects as go

    figure: Json = orjson.loads(go.Figure(list(traces), layout={"template": "none", **layout}).to_json())
    return figure

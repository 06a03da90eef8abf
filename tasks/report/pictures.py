"""The report's plots as small PNG pictures, for where plotly does not run: the summary in Prefect's UI."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.report.figures import Plot

SHOWN = ("throughput", "completion", "shards")
SIZE_INCHES = (6.4, 2.0)
DOTS_AN_INCH = 90
COLOURS = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#008300", "#4a3aa7", "#e34948")
INK = "#52514e"


def pictures(plots: Sequence[Plot]) -> list[tuple[str, str]]:
    """(title, data URI) of the plots that tell most, where there are lines or bars to draw."""
    chosen = [plot for plot in plots if plot.name in SHOWN and {t["type"] for t in plot.figure["data"]} <= _DRAWN]
    return [(plot.title, _picture(plot)) for plot in chosen]


def _picture(plot: Plot) -> str:
    from matplotlib.figure import Figure

    figure = Figure(SIZE_INCHES, dpi=DOTS_AN_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.margins(x=0.005)
    traces, layout = plot.figure["data"], plot.figure["layout"]
    if traces[0]["type"] == "scatter":
        x, rates = _numbers(traces[0]["x"]), [_numbers(trace["y"]) for trace in traces]
        axes.stackplot(x, rates, labels=[trace["name"] for trace in traces], colors=COLOURS, step="mid")
        if len(traces) > 1:
            axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    else:
        axes.bar(_numbers(traces[0]["x"]), _numbers(traces[0]["y"]), width=0.9, color=COLOURS[0])
    xaxis = layout.get("xaxis", {})
    if "tickvals" in xaxis:
        axes.set_xticks(_numbers(xaxis["tickvals"]), xaxis["ticktext"])
        axes.set_xlim(-0.55, len(traces[0]["x"]) - 0.45)
    axes.set_xlabel(xaxis.get("title", {}).get("text", ""), color=INK, fontsize=8)
    axes.set_ylabel(layout.get("yaxis", {}).get("title", {}).get("text", ""), color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9c8c3")
    axes.set_ylim(bottom=0)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


_DRAWN = {"scatter", "bar"}


def _numbers(values: Any) -> Any:
    """A trace's values: a list, or plotly's base64 of an array."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]))
    return np.asarray(values)

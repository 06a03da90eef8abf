"""report.html: one self-contained page with a run's figures, plots and a viewer of samples.

It opens from a disk with no network, and stays below 10 MB however large the run is: the plots are made of the shards'
manifests, the samples are a bounded choice. What a model wrote is data on this page and never markup: samples travel as
JSON without a `<`, are shown as text, and the page's content policy runs no script but its own two.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from tasks.config import GenerateConfig
from tasks.records import DatasetManifest, Json, ShardManifest, Tally
from tasks.report.embed import json_for_html
from tasks.report.figures import plots
from tasks.report.headline import headline
from tasks.report.samples import choose
from tasks.report.summary import summary
from tasks.report.thumbnails import thumbnails
from tasks.retries import retried
from tasks.storage import Storage, open_storage, write

REPORT = "report.html"
MOST_SETTINGS = 40_000
"""Characters of the config that are shown."""

_PARTS = Path(__file__).parent / "report"


@task(
    name="write_report",
    task_run_name="write_report",
    description="Write report.html: figures, plots and a viewer of samples in one self-contained page.",
    tags=["report"],
    cache_policy=NO_CACHE,
    **retried(2, first_delay=5),
)
def write_report(output_path: str, manifest: Json, dataset: DatasetManifest, shards: Sequence[ShardManifest]) -> str:
    """`report`, with the run's figures as an artifact in Prefect's UI. Returns where the report is."""
    where = report(open_storage(output_path), manifest, dataset, shards)
    if TaskRunContext.get() is not None:
        text = summary(open_storage(output_path), manifest, shards)
        create_markdown_artifact(text, key="report", description="What was made: figures, plots, samples, files")
    return where


def report(storage: Storage, manifest: Json, dataset: DatasetManifest, shards: Sequence[ShardManifest]) -> str:
    """Write report.html from the run's manifest.json (parsed), its dataset and its shards. Returns its full path."""
    write(storage, REPORT, page(storage, manifest, dataset, shards).encode())
    return f"{storage.root}/{REPORT}"


def page(storage: Storage, manifest: Json, dataset: DatasetManifest, shards: Sequence[ShardManifest]) -> str:
    """The page's HTML."""
    config = GenerateConfig.model_validate(manifest["config"])
    tally = Tally.model_validate(manifest["tally"])
    samples = choose(storage, f"shards/{manifest['key']}", shards, config.validation)
    drawn = plots(shards, tally)
    data = {
        "samples": [sample.json() for sample in samples],
        "images": {str(index): uris for index, uris in thumbnails(samples, dataset, config).items()},
        "plots": {plot.name: plot.figure for plot in drawn},
    }
    script, plotly = (_PARTS / "page.js").read_text(encoding="utf-8"), _plotly()
    return _template().render(
        title=f"{_last_part(config.model.source)} on {_last_part(config.dataset.path)}",
        policy=_policy([script, plotly]),
        style=Markup((_PARTS / "page.css").read_text(encoding="utf-8")),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        plotly=Markup(plotly),  # noqa: S704
        manifest=manifest,
        started=datetime.fromtimestamp(manifest["this_run"]["started_at"], UTC).strftime("%Y-%m-%d %H:%M UTC"),
        figures=list(headline(manifest, tally, shards)),
        plots=drawn,
        settings=_settings(config),
        data=Markup(json_for_html(data)),  # noqa: S704
        shown=len(samples),
        total=tally.samples + tally.errors,
    )


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path


def _settings(config: GenerateConfig) -> str:
    """The config as YAML, without what was left at its default, cut where it is no reading matter any more."""
    chosen = config.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    return text if len(text) <= MOST_SETTINGS else f"{text[:MOST_SETTINGS]}\n… (all of it is in manifest.json)"


def _policy(scripts: Sequence[str]) -> str:
    """A content policy: no network, no script but these."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _template() -> Template:
    loader = FileSystemLoader(_PARTS)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")

"""How large a run's report is, how long it takes to make, and how soon a browser can search in it.

Needs `playwright` and Chromium. Rows hold markup that would open a dialog if any of it were taken for markup; the
browser's dialogs, errors and requests are counted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tasks.records import Json
from tasks.write_report import report
from tests.benchmarks.harness import Result
from tests.runs import Run, finished_run
from tests.shards import RowMaker, sample_row

FIRST_SEEN = """
  window.seen = {};
  new MutationObserver(() => {
    const now = performance.now() / 1000;
    if (document.querySelector("#list li[aria-current]")) window.seen.searchable ??= now;
    if (document.querySelector(".plot .main-svg")) window.seen.plots ??= now;
  }).observe(document, { childList: true, subtree: true, attributes: true });
"""
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--words", type=int, default=120, help="words a completion, on the median")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--screenshots", help="folder for pictures of the page, light and dark")


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        records = options.samples // options.n
        run = finished_run(Path(folder), records, 1024, options.n, _row_maker(options.words), options.engines)
        started = time.perf_counter()
        path = Path(report(run.storage, run.manifest, run.dataset, run.shards))
        made = {"samples": options.samples, "make_seconds": round(time.perf_counter() - started, 2)}
        size = {"megabytes": round(path.stat().st_size / 1e6, 2), "data_megabytes": _data_megabytes(run)}
        figures = made | size | browse(path, options.screenshots)
    return Result([{"figure": name, "value": str(value)} for name, value in figures.items()])


def _data_megabytes(run: Run) -> float:
    return round(sum(shard.data.bytes for shard in run.shards) / 1e6, 1)


def _row_maker(words: int) -> RowMaker:
    vocabulary = [bytes(random.Random(i).choices(b"abcdefghijklmnop", k=2 + i % 9)).decode() for i in range(999)]

    def row(index: int, sample: int) -> Json:
        made = sample_row(index, sample)
        if "predict" not in made:
            return made
        source = random.Random(index * 64 + sample)
        length = int(source.lognormvariate(0, 0.7) * words) + 1
        text = " ".join(source.choices(vocabulary, k=length))
        attack = ATTACK if index % 97 == 0 else ""
        texts = {"predict": f"{made['predict']} {text} {attack}", "reasoning": f"First, {text[:400]}{attack}"}
        return (
            made | texts | {"completion_tokens": length * 3 // 2, "prompt_tokens": 40 + int(source.expovariate(0.01))}
        )

    return row


def browse(path: Path, screenshots: str | None) -> Json:
    """Open the page from the disk, offline, and use it."""
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        seen: dict[str, list[Any]] = {"dialogs": [], "errors": [], "requests": []}
        page.on("dialog", lambda dialog: (seen["dialogs"].append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: seen["errors"].append(str(error)))
        page.on("console", lambda message: message.type == "error" and seen["errors"].append(message.text))
        page.on("request", lambda request: seen["requests"].append(request.url[:80]))
        figures = _use(page, path)
        if screenshots:
            _picture(page, Path(screenshots))
        browser.close()
    outside = [url for url in seen["requests"] if not url.startswith(("file:", "data:", "blob:"))]
    return figures | {"dialogs": seen["dialogs"], "errors": seen["errors"], "requests_outside": outside}


def _use(page: Page, path: Path) -> Json:
    page.add_init_script(FIRST_SEEN)
    page.goto(path.as_uri())
    page.wait_for_function("window.seen.plots")
    seen = page.evaluate("window.seen")
    started = time.perf_counter()
    page.fill("#search", "alert(1)")
    page.wait_for_selector("#detail mark")
    found = page.locator("#list li").count()
    return {
        "searchable_seconds": round(seen["searchable"], 2),
        "plots_seconds": round(seen["plots"], 2),
        "search_seconds": round(time.perf_counter() - started, 3),
        "attacks_found": found,
        "attack_is_text": "<img src=x onerror=alert(2)>" in page.locator("#detail").inner_text(),
    }


def _picture(page: Page, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page.locator("#viewer").screenshot(path=folder / "search.png")
    page.fill("#search", "")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "narrow.png", full_page=True)

"""A run from the command line: what is shown, what goes to the log, how it is stopped, and its exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from flows.command_line import wrong_fields
from flows.early_stop import EXIT_INTERRUPTED, STOPPED
from flows.own_server import serving
from tasks.config import GenerateConfig
from tasks.engines import spare
from tasks.errors import RunError
from tasks.outputs.formats import first_rows
from tasks.progress import duration
from tasks.records import Json, Tally
from tasks.run_log import log_to_file
from tasks.storage import open_storage
from tasks.tally import metrics

EXIT_OK, EXIT_FAILED = 0, 1
LEAVE_SECONDS = 20.0
"""What a stopped run may take to end in order. Engines are gone by then; Prefect may still wait for a slow server."""
SAMPLES_SHOWN = 3
CHARACTERS_SHOWN = 400


def run_in_terminal(generate: Any, config: GenerateConfig) -> int:
    """Run the flow; 0 when all gates passed, 1 when the run or a gate failed, 130 when it was stopped."""
    try:
        log_path = log_to_file(config.output.path)
    except OSError as error:
        _say(f"error: output.path: {config.output.path} cannot be written to: {error}")
        return EXIT_FAILED
    _say(f"logs: {log_path.parent}")
    _heed_signals()
    try:
        with serving():
            manifest = generate(**{name: getattr(config, name) for name in GenerateConfig.model_fields})
    except KeyboardInterrupt:
        _say(STOPPED)
        return EXIT_INTERRUPTED
    except RunError as error:
        _say(f"error: {' '.join(str(error).split())}")
        _say(f"files: {config.output.path} (log: {log_path})")
        return EXIT_FAILED
    except Exception as error:
        _say(f"error: {_one_line(error)} (log: {log_path})")
        return EXIT_FAILED
    finally:
        spare.discard()
    with contextlib.suppress(OSError):  # nobody reads on, as behind `| head`
        print(summary(manifest, config.output.path), flush=True)
    return EXIT_OK


def summary(manifest: Json, output_path: str) -> str:
    """What was made, in a few lines, and the first samples of it."""
    tally = Tally.model_validate(manifest["tally"])
    run = manifest["this_run"]
    made = run["generated_tokens"]
    truncated = tally.truncated / tally.samples if tally.samples else 0.0
    data, errors = (manifest["files"][kind]["name"] for kind in ("data", "errors"))
    lines = [
        *_first_samples(output_path, data),
        f"samples    {tally.samples}",
        f"errors     {tally.errors}" + "".join(f", {kind}: {n}" for kind, n in sorted(tally.errors_by_kind.items())),
        f"tokens     {tally.completion_tokens} generated in all, {made} by this run"
        + (f" ({run['tokens_per_second']:.0f} tokens/s, engine start included)" if made else ""),
        f"truncated  {truncated:.1%}",
        *_accuracy(tally),
        f"time       {duration(run['seconds'])}",
        f"result     {output_path}/{data}",
        f"report     {output_path}/report.html",
        f"errors in  {output_path}/{errors}, provenance in {output_path}/manifest.json",
    ]
    return "\n".join(lines)


def _accuracy(tally: Tally) -> list[str]:
    """Accuracy, pass@1 and pass@n, and the majority vote, where there are labels to compare with."""
    shares = metrics(tally)
    if not shares:
        return []
    names = dict.fromkeys(("pass@1", f"pass@{max(tally.pass_at)}", "majority_accuracy"))
    more = [f"{name.removesuffix('_accuracy')} {shares[name]:.1%}" for name in names if name in shares]
    return [f"accuracy   {shares['accuracy']:.1%}; {', '.join(more)}"]


def _first_samples(output_path: str, data: str) -> list[str]:
    lines: list[str] = []
    for row in first_rows(open_storage(output_path), data, SAMPLES_SHOWN):
        text = row["predict"].strip()
        cut = "…" if len(text) > CHARACTERS_SHOWN else ""
        lines += [f"--- record {row['original_index']}, sample {row['sample_id']}", text[:CHARACTERS_SHOWN] + cut]
    return [*lines, "---"] if lines else lines


def _say(line: str) -> None:
    """To the terminal, if it is still there."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _heed_signals() -> None:
    """SIGTERM and a closed terminal end the run like Ctrl-C does; under nohup a closed terminal does not."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    leaving = threading.Timer(LEAVE_SECONDS, _leave)
    leaving.daemon = True
    leaving.start()
    raise KeyboardInterrupt


def _leave() -> None:
    """End at once, as kill -9 would: the keepers end what is left."""
    _say(STOPPED)
    os._exit(EXIT_INTERRUPTED)


def _one_line(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(wrong_fields(error))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

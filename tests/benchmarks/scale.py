"""A simulation: a billion records on a thousand GPUs. Where would it break first?

Shards are handed out as the pool does it, to engines that differ in speed, on nodes that die and come back; the loads
of all that there is only one of (the pool's thread, Ray's driver, Prefect's server, the machine that splits and merges)
are set against what each can carry. Assumed, and options where they may differ:

- records of 500 tokens out (log-normal, sigma 0.8), 2 kB in and 3 kB out; one sample each
- a GPU makes 6,000 tokens/s (Qwen3-8B on an H100, published figures), engines differ by 5 % (standard deviation)
- 8 GPUs a node; a GPU takes its node down once in 2,000 days (Llama 3's training: 419 times in 54 days on 16,384); it
  is back after 15 minutes, and another 3 until its engines are ready; what was in flight is lost, chunks are not
- measured here: 20 µs an event in the pool's thread and 5 where an actor's travel together (benchmark `scheduling`),
  25 ms a shard in Prefect (benchmark `orchestration`)
- not measured: 0.3 ms a call to a Ray actor, 10 task rows/s in Prefect's server
- one machine reads and hashes 1 GB/s, and asks S3 for 100 copies of parts a second; S3 takes 3,500 writes/s a prefix
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass

from flows.generate import MOST_SHARDS_AT_ONCE
from tasks.engines.ray_actor import GATHER_SECONDS
from tasks.inputs.plan import choose_shard_size
from tests.benchmarks.harness import Figures, Result

GPUS_A_NODE = 8
OUT_TOKENS, SIGMA = 500.0, 0.8
SPREAD = 0.05
IN_BYTES, OUT_BYTES = 2e3, 3e3
GPU_DAYS = 2000.0
AWAY_SECONDS, READY_SECONDS = 15 * 60.0, 3 * 60.0
CHUNK_SECONDS = 30.0
EVENT_SECONDS, GATHERED_SECONDS, CALL_SECONDS = 20e-6, 5e-6, 0.3e-3
PREFECT_SECONDS, PREFECT_ROWS = 0.025, 10.0
DISK, COPIES, WRITES = 1e9, 100.0, 3500.0
UPLOAD_BYTES = 1.3e12  # what S3Upload's 10,000 parts hold, however small the shards


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--tokens-per-second", type=float, default=6000.0, help="of a GPU")
    parser.add_argument("--gpu-days", type=float, default=GPU_DAYS, help="between two deaths of a node, for each GPU")
    parser.add_argument("--shard-size", type=int, nargs="+", help="records (default: our own rule, and fewer shards)")


def measure(options: argparse.Namespace) -> Result:
    records = int(options.records)
    ours = choose_shard_size(records, 1)
    sizes = options.shard_size or [records // 256, 4 * ours, ours, ours // 4]
    runs = [simulate(records, size, options) for size in sizes]
    rows: list[Figures] = [run.row() for run in runs]
    chosen = next((run for run in runs if run.size == ours), runs[0])
    loads = chosen.loads()
    figures = {
        f"GPU time lost with shards of {chosen.size:,}, %": round(100 * chosen.lost, 2),
        **{f"load: {name}, %": round(100 * load, 2) for name, load in loads.items()},
    }
    notes = [
        f"it broke first at: {max(loads, key=lambda name: loads[name])}",
        f"as it stands, the nearest to its limit: {max(_today(loads), key=lambda name: loads[name])}",
        *(f"outside the run's own time: {words}" for words in chosen.before_and_after()),
    ]
    return Result(rows, figures, {}, notes)


@dataclass(frozen=True)
class Run:
    """What came of it: seconds from the first engine that is ready to the last shard, and what an ideal run takes."""

    records: int
    size: int
    gpus: int
    seconds: float
    ideal: float
    deaths: int
    again: float

    @property
    def shards(self) -> int:
        return -(-self.records // self.size)

    @property
    def lost(self) -> float:
        """The share of the GPUs' time that made nothing that counts."""
        return 1 - self.ideal / self.seconds

    def row(self) -> Figures:
        return {
            "records a shard": self.size,
            "shards": self.shards,
            "hours": round(self.seconds / 3600, 2),
            "ideal": round(self.ideal / 3600, 2),
            "GPU time lost %": round(100 * self.lost, 2),
            "nodes died": self.deaths,
            "GPU hours made again": round(self.again / 3600, 2),
        }

    def loads(self) -> Figures:
        """What must keep up while the run goes on, as a share of what it can carry."""
        rate = self.records / self.seconds
        events = 3 * rate + self.gpus
        calls = self.gpus / GATHER_SECONDS
        return {
            "pool's thread, an event at a time (not so any more)": events * EVENT_SECONDS,
            "pool's thread, an actor's events together": events * GATHERED_SECONDS,
            "Ray's driver, a call for each event (not so any more)": events * CALL_SECONDS,
            "Ray's driver, events gathered": min(calls, events) * CALL_SECONDS,
            "waiting tasks in the flow's process": 2 * self.gpus / MOST_SHARDS_AT_ONCE,
            "Prefect in the flow's process": self.shards * PREFECT_SECONDS / self.seconds,
            "Prefect's server (rows)": 3 * self.shards / self.seconds / PREFECT_ROWS,
            "S3 writes (chunks)": self.gpus / CHUNK_SECONDS / WRITES,
        }

    def before_and_after(self) -> list[str]:
        """What one machine does alone."""
        made, read = self.records * OUT_BYTES, self.records * IN_BYTES
        return [
            f"splitting reads {read / 1e12:.1f} TB once, {read / DISK / 60:.0f} min",
            f"merging copies {self.shards:,} shards on S3, {self.shards / COPIES / 60:.0f} min",
            f"data.jsonl is {made / 1e12:.1f} TB, and on S3 one upload holds {UPLOAD_BYTES / 1e12:.1f}: "
            + ("it fits" if made <= UPLOAD_BYTES else "it must be several outputs"),
            f"a rerun hashes what is finished, at most {made / DISK / 60:.0f} min",
        ]


def _today(loads: Figures) -> list[str]:
    return [name for name in loads if "not so any more" not in name]


def simulate(records: int, size: int, options: argparse.Namespace) -> Run:
    """Shards by the pool's rule, the next one to whichever engine is free, through deaths of nodes."""
    rng, gpus = random.Random(1), options.gpus
    speeds = [options.tokens_per_second * rng.gauss(1.0, SPREAD) for _ in range(gpus)]
    nodes = -(-gpus // GPUS_A_NODE)
    deaths = [_deaths(rng, options.gpu_days, 30 * 86400.0) for _ in range(nodes)]
    free = [(0.0, engine) for engine in range(gpus)]
    heapq.heapify(free)
    ended, again, left = 0.0, 0.0, records
    died: set[tuple[int, float]] = set()
    deviation = OUT_TOKENS * (2.718281828 ** (SIGMA**2) - 1) ** 0.5
    owed: list[float] = []
    while left > 0 or owed:
        now, engine = heapq.heappop(free)
        if owed:
            tokens = owed.pop()
        else:
            count = min(size, left)
            left -= count
            tokens = count * OUT_TOKENS + rng.gauss(0.0, deviation) * count**0.5
        end = now + tokens / speeds[engine]
        death = next((at for at in deaths[engine // GPUS_A_NODE] if at + AWAY_SECONDS + READY_SECONDS > now), None)
        if death is not None and death < end:
            made = max(0.0, death - now)
            kept = made - min(made, rng.uniform(0, CHUNK_SECONDS))
            again += made - kept
            died.add((engine // GPUS_A_NODE, death))
            owed.append(tokens - kept * speeds[engine])
            heapq.heappush(free, (max(now, death) + AWAY_SECONDS + READY_SECONDS, engine))
            continue
        ended = max(ended, end)
        heapq.heappush(free, (end, engine))
    ideal = records * OUT_TOKENS / sum(speeds)
    return Run(records, size, gpus, ended, ideal, len(died), again)


def _deaths(rng: random.Random, gpu_days: float, until: float) -> list[float]:
    """Moments at which a node dies."""
    found, now = [], 0.0
    while (now := now + rng.expovariate(GPUS_A_NODE / (gpu_days * 86400))) < until:
        found.append(now)
    return found

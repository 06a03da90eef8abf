"""How many records a shard has: by how many there are; shards that an earlier run made stay what they are."""

from __future__ import annotations

from tasks.records import ShardPlan

FEWEST_RECORDS = 16
FEWEST_SAMPLES = 256
MANY_SHARDS = 256
MOST_SAMPLES = 16384
"""Samples a shard, most: some ten minutes of a GPU. With longer shards many engines would wait for the last few."""
MOST_SHARDS = 65536


def plan_shards(records: int, n: int, known: ShardPlan | None = None) -> ShardPlan:
    """The plan for so many records of `n` samples.

    The shards of a `known` plan stay what they are, but for the last one of a dataset that grew. Where it makes more
    than twice the shards that there should be, what is new comes in longer ones.
    """
    size = choose_shard_size(records, n)
    if known is None:
        return ShardPlan(records=records, steps=((0, size),))
    if size <= 2 * known.last_size:
        return known.model_copy(update={"records": records})
    whole = known.whole_until
    kept = tuple(step for step in known.steps if step[0] < whole)
    return ShardPlan(records=records, steps=(*kept, (whole, size)))


def one_size(size: int) -> ShardPlan:
    """Shards of so many records each."""
    return ShardPlan(records=0, steps=((0, size),))


def choose_shard_size(records: int, n: int) -> int:
    """Records a shard: a power of two that makes at most some hundreds of shards, more where they would grow too long.

    The smallest is 16, or less where so few records already are hundreds of samples.
    """
    least = FEWEST_RECORDS
    while least > 1 and least * n > FEWEST_SAMPLES:
        least //= 2
    size = least
    while records > size * MANY_SHARDS:
        size *= 2
    while size > least and size * n > MOST_SAMPLES and records <= size // 2 * MOST_SHARDS:
        size //= 2
    return size

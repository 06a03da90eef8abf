"""A gpt-oss that speaks: tiny, with weights made by hand so that its samples are valid harmony at random.

The layers add nothing, so a token's successors depend on it alone: the edges of `STREAM`. Where a token has several,
each is as likely. A sample thinks any number of times, then calls a tool or answers; what each channel says is random.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.models import make_once, save_gpt_oss

STREAM = (
    "<|start|>assistant<|channel|>analysis<|message|>Let me think<|end|><|start|>",
    '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>',
    "<|channel|>final<|message|>Paris it is<|return|>",
)
GAIN = 40.0
"""Logit of a successor; all other tokens have 0."""


def speaking_gpt_oss(folder: Path) -> Path:
    """See above; no tokenizer, as harmony needs none."""
    return make_once(folder, _make)


def _make(out: Path) -> None:
    save_gpt_oss(out, _speak)


def _speak(model: Any) -> None:
    import torch

    followers = _followers()
    tokens = sorted({token for pair in followers for token in pair})
    place = {token: number for number, token in enumerate(tokens)}
    size = model.config.hidden_size
    assert len(tokens) <= size
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        for token in tokens:
            model.model.embed_tokens.weight[token, place[token]] = 1.0
        for token, follower in followers:
            # The last norm makes a unit vector as long as the square root of its size.
            model.lm_head.weight[follower, place[token]] = GAIN / size**0.5


def _followers() -> set[tuple[int, int]]:
    import openai_harmony as harmony

    encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    pairs: set[tuple[int, int]] = set()
    for text in STREAM:
        tokens = encoding.encode(text, allowed_special="all")
        pairs |= set(pairwise(tokens))
    return pairs

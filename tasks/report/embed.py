"""Data inside a page."""

from __future__ import annotations

from typing import Any

import orjson


def json_for_html(data: Any) -> str:
    """JSON that means the same to a JSON parser, with no `<`: nothing in it can end a script element or begin one."""
    return orjson.dumps(data).decode().replace("<", "\\u003c")

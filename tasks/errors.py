"""Errors that a person is meant to read."""

from __future__ import annotations


class RunError(Exception):
    """Something a person must change before the run can go on; shown as its one line, without a traceback.

    The message names the file, field or setting and says what to do. Not retried: a retry would meet it again.
    """


class InputChanged(RunError):
    """An input file is not what it was when the run split it; no row may come from it."""

    @classmethod
    def of(cls, path: str) -> InputChanged:
        """The error for this file, or these."""
        return cls(f"dataset.path: {path} changed while the run was using it; run again")

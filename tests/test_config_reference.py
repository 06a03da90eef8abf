"""docs/config.md is what the config is."""

from __future__ import annotations

from infra.config_reference import PAGE, render


def test_the_page_is_written_from_the_config() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python infra/config_reference.py"


def test_a_field_stands_with_its_values_default_and_meaning() -> None:
    page = render()
    assert "| `downloader` | `auto`, `hub`, `hfd` | `auto` | hub: huggingface_hub;" in page
    assert "| `source` | text | required |" in page
    assert "| `structured.choice` | list of text |  | The completion is one of these strings. |" in page

"""A build step of deployments/prefect.yaml: a run config's sections as a deployment's parameters.

So a deployment starts from the same file as the command line, and the two never drift.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from flows.command_line import wrong_fields
from tasks.config import GenerateConfig
from tasks.records import Json


def run_config(file: str) -> Json:
    """Every section of the config, with the fields that `file` sets. Raises ValueError naming each wrong field."""
    values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    try:
        config = GenerateConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(f"{file}: {line}" for line in wrong_fields(error))) from None
    chosen = config.model_dump(mode="json", exclude_unset=True)
    return {section: chosen.get(section, {}) for section in GenerateConfig.model_fields}

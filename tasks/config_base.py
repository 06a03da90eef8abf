"""What all sections of the config have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from tasks.config_checks import check_text
from tasks.form import form_schema, form_title


def _no_credentials(value: str) -> str:
    """The config is stored with the results, and shown: what is secret must not come in."""
    if not value.strip():
        raise ValueError("must not be empty")
    _, found, rest = value.partition("://")
    if found and "@" in rest.split("/", 1)[0]:
        raise PydanticCustomError("secret", "must hold no credentials: they come from the environment")
    return value


Place = Annotated[str, AfterValidator(_no_credentials)]
Rate = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of the config: unknown fields are refused, values cannot change once checked."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        field_title_generator=form_title,
        json_schema_extra=form_schema,
    )

    @field_validator("*")
    @classmethod
    def _text_that_can_be_stored(cls, value: Any) -> Any:
        return check_text(value)

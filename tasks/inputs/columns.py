"""Which fields of a record a run uses: of a Parquet file, only these columns are read and hashed."""

from __future__ import annotations

from tasks.config import GenerateConfig

CONVERSATION_FIELDS = ("tools", "conversation_start_date")
"""Fields that prompt formats look for by these names."""


def needed_columns(config: GenerateConfig) -> tuple[str, ...]:
    """The names of all fields that the config's prompt, samples and limits are made from, sorted.

    Raises jinja2.TemplateSyntaxError for a template that cannot be compiled.
    """
    dataset = config.dataset
    names = {
        dataset.messages_field,
        dataset.prompt_field,
        dataset.images_field,
        dataset.videos_field,
        dataset.id_field,
        *([dataset.label_field] if dataset.label_field else ["label", "answer"]),
        *CONVERSATION_FIELDS,
        *config.output.keep_fields,
        *_template_fields(config.prompt.template),
    }
    if config.sampling.max_tokens_field:
        names.add(config.sampling.max_tokens_field)
    return tuple(sorted(names))


def _template_fields(template: str | None) -> set[str]:
    if template is None:
        return set()
    from jinja2 import Environment, meta

    return meta.find_undeclared_variables(Environment(autoescape=False).parse(template))  # noqa: S701

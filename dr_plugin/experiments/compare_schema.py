"""What a recipe may say under ``compare``."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from .schema_base import Section, Seed, Text

VariantName = Annotated[str, Field(pattern=r"^\w[\w-]*$", max_length=60)]


class Comparison(Section):
    """The recipe trained with several samplers, miners and losses, all else being equal, each with several seeds."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each variant runs once with each of these."""
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=2)]
    """By name, what each sets: `stages.NAME.` with sampler, stream, miner, loss or loss_optimizer; and relevance."""
    figures: Annotated[list[Text], Field(min_length=1)] | None = None
    """Keys of `metrics.json` to tabulate, the one that decides first; null: `val.precision_at_` k alone."""

    @field_validator("seeds", "figures")
    @classmethod
    def _each_once(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("each of them once")
        return value

    @field_validator("variants")
    @classmethod
    def _folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len({name.lower() for name in value}) < len(value):
            raise ValueError("names that differ in more than capitals: folders are called so")
        return value

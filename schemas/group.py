"""The base of every group of settings."""

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """Base of a group of settings: frozen, unknown names refused so that a typo is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

"""What every answer is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict

Values = float | int | None | list[Any]
"""Numbers, nested by axis."""


class Fields(BaseModel):
    """Every field is always there."""

    model_config = ConfigDict(extra="forbid")

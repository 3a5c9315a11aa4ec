"""What the server is, and what went wrong."""

from typing import Literal

from pydantic import ConfigDict

from gossamer.server.answers.fields import Fields


class Error(Fields):
    """What went wrong."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "prompt",
                    "message": "' golf club' is not one token but 2: ' golf' + ' club'. …",
                    "field": "target",
                }
            ]
        }
    )

    code: str
    message: str
    field: str | None


class Health(Fields):
    """That the server is there."""

    status: Literal["ok"]
    version: str
    device: str
    waiting: int
    running: int
    jobs_waiting: int


class SaeInfo(Fields):
    """One SAE."""

    site_in: str
    site_out: str
    d_sae: int | None
    has_labels: bool
    neuronpedia_id: str | None


class ModelInfo(Fields):
    """The model and its SAEs."""

    name: str
    dtype: str
    device: str
    n_layers: int
    d_model: int
    d_vocab: int
    context_length: int
    has_tokenizer: bool
    sites: list[str]
    saes: list[SaeInfo]


class TokenList(Fields):
    """A prompt as tokens."""

    token_ids: list[int]
    tokens: list[str]


class Done(Fields):
    """That something was done."""

    id: str

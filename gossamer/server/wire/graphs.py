"""Bodies about graphs: attribute, verify, compare_graphs."""

from typing import Annotated, Literal

from pydantic import Field

from gossamer.server.wire.requests import PROMPT, example
from gossamer.server.wire.values import (
    Count,
    Hold,
    Int,
    Latents,
    LogitDifference,
    Logits,
    Name,
    Number,
    Prompt,
    Prompts,
    Saes,
    Wire,
)

GraphId = Annotated[str, Field(pattern="^g-[0-9a-f]{16}$")]
GraphTarget = Name | Annotated[Logits | LogitDifference | Latents, Field(discriminator="kind")]
Pair = Annotated[list[Int], Field(min_length=2, max_length=2)]
Ends = Annotated[list[Name], Field(min_length=2, max_length=2)]
Align = Literal["start", "end"] | Annotated[list[Pair], Field(max_length=4096)]
Most = Annotated[int, Field(ge=0, le=10_000)]


class AttributeRequest(Wire):
    """A prompt's graph; with `against` two graphs side by side."""

    model_config = example(
        {
            "prompt": PROMPT,
            "target": {"kind": "logit_difference", "token": ".", "distractor": "\n"},
            "max_nodes": 2000,
        },
        {"prompt": "def f(self):\n    return", "against": "def f(cls):\n    return"},
    )

    prompt: Prompts
    target: GraphTarget | None = None
    saes: Saes = "all"
    hold: Hold | None = None
    max_nodes: Count | None = None
    effects: Literal["direct", "gradient", "integrated"] = "direct"
    steps: Annotated[int, Field(ge=1, le=256)] = 16
    against: Prompt | None = None
    align: Align = "end"
    title: Name = ""


class VerifyRequest(Wire):
    """Edges and nodes of a graph to check in the model."""

    model_config = example({"graph": "g-0123456789abcdef", "n_edges": 20})

    graph: GraphId
    n_edges: Most = 200
    edges: Annotated[list[Ends], Field(max_length=10_000)] | None = None
    nodes: Most | Annotated[list[Name], Field(max_length=10_000)] = 0
    choose: Literal["strongest", "scored", "sampled"] = "scored"
    small: Annotated[Number, Field(ge=-10, le=10)] = 0.1
    tolerance: Number = 0.2
    floor: Annotated[Number, Field(ge=0)] | None = None
    error: Literal["attached", "frozen"] = "attached"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class CompareGraphsRequest(Wire):
    """Two graphs side by side."""

    model_config = example({"first": "g-0123456789abcdef", "second": "g-0123456789abcdef"})

    first: GraphId
    second: GraphId
    align: Align = "end"
    tolerance: Number = 0.2
    top: Most = 20
    side: Literal["first", "second", "both", "changed"] | None = None

"""Bodies of requests: each has the fields of its function's arguments."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gossamer.server.wire.values import (
    Choice,
    Count,
    Edits,
    Error,
    Hold,
    Int,
    Ints,
    Latents,
    LogitDifference,
    Logits,
    Name,
    Number,
    Prompt,
    Prompts,
    Route,
    Saes,
    Target,
    Text,
    Tokens,
    TokenSource,
    Upstream,
    Wire,
)

PROMPT = "def add(self, other):\n    return self"


def example(*bodies: dict[str, Any]) -> ConfigDict:
    """Examples of a body, for the OpenAPI page."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class AnalysisRequest(Wire):
    """One analysis."""

    model_config = example(
        {
            "prompt": PROMPT,
            "target": {"kind": "logit_difference", "token": ".", "distractor": "\n"},
            "edits": [{"kind": "ablate", "at": "blocks.1.attn.hook_z/2@4"}],
            "choice": {"top": 5},
        }
    )

    prompt: Prompt
    target: Target | None = None
    saes: Saes = "all"
    edits: Edits = []
    upstream: Upstream | None = None
    hold: Hold = ["norms"]
    error: Error = "attached"
    choice: Choice = Choice()
    prepend_bos: bool | None = None


class BatchRequest(Wire):
    """Several analyses."""

    model_config = example({"requests": [{"prompt": PROMPT, "target": "."}, {"prompt": [0, 5]}]})

    requests: Annotated[list[AnalysisRequest], Field(min_length=1, max_length=200)]


class UpstreamRequest(Wire):
    """What is upstream of a node."""

    model_config = example(
        {"prompt": PROMPT, "node": "blocks.2.attn.hook_z/1@9<-4", "through": "k"}
    )

    prompt: Prompt
    node: Name
    through: Route = "pre"
    target: Target | None = None
    saes: Saes = "all"
    edits: Edits = []
    hold: Hold = ["norms"]
    error: Error = "attached"
    choice: Choice = Choice()
    prepend_bos: bool | None = None


class TokenizeRequest(Wire):
    """A prompt as tokens."""

    model_config = example({"prompt": PROMPT})

    prompt: Prompt
    prepend_bos: bool | None = None


class RunRequest(Wire):
    """One pass with SAEs and edits in it."""

    model_config = example({"prompts": PROMPT, "top_latents": 3, "position": None})

    prompts: Prompts
    saes: Saes = "all"
    edits: Edits = []
    record: Annotated[list[Name], Field(max_length=64)] = []
    error: Error = "attached"
    prepend_bos: bool | None = None
    top_latents: Annotated[int, Field(ge=0, le=1000)] = 10
    top_logits: Annotated[int, Field(ge=0, le=1000)] = 10
    position: Int | None = -1


class EdgesRequest(Wire):
    """Effects of nodes on nodes."""

    model_config = example(
        {
            "prompt": PROMPT,
            "source": {"kind": "latents", "site": "blocks.1.hook_resid_pre"},
            "target": {"kind": "logits", "top": 3},
            "top": 5,
        }
    )

    prompt: Prompts
    source: Annotated[TokenSource | Latents, Field(discriminator="kind")]
    target: Annotated[Latents | Logits | LogitDifference, Field(discriminator="kind")]
    saes: Saes = "all"
    hold: Hold = []
    direct: bool = False
    error: Error = "frozen"
    top: Annotated[int, Field(ge=0, le=10_000)] = 100
    matrix: bool = False


class GenerateRequest(Wire):
    """Go on with a text."""

    model_config = example(
        {
            "prompt": "def read(self, path):\n    ",
            "edits": [
                {"kind": "set", "at": "blocks.2.hook_resid_pre", "latents": 1740, "value": 20.0}
            ],
            "n_tokens": 8,
            "stream": False,
        }
    )

    prompt: Prompts
    saes: Saes = "all"
    edits: Edits = []
    n_tokens: Int = 40
    error: Error = "attached"
    temperature: Number = 0.0
    top_k: Int | None = None
    top_p: Number | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: Tokens | None = None
    prepend_bos: bool | None = None
    compare: bool = True
    stream: bool = True


class DashboardRequest(Wire):
    """What latents do over a corpus."""

    site: Name
    latents: Ints | None = None
    n_tokens: Count = 262_144
    corpus: Name = "stdlib"
    texts: Annotated[list[Text], Field(max_length=16)] = []


AnalysisId = Annotated[str, Field(pattern="^a-[0-9a-f]{16}$")]


class CompareRequest(Wire):
    """Two analyses side by side."""

    model_config = example({"left": "a-0123456789abcdef"})

    left: AnalysisId
    right: AnalysisId | None = None
    align: Literal["start", "end"] = "start"


class ScalarsRequest(Wire):
    """A derived scalar of an analysis that was made."""

    model_config = example({"analysis": "a-0123456789abcdef", "kind": "head", "metric": "direct"})

    analysis: AnalysisId
    kind: Name
    metric: Name
    site: Name | None = None
    reduce: Annotated[list[Name], Field(max_length=8)] = []
    node: Name | None = None
    route: Route = "pre"
    hold: Hold = ["norms"]


class LogitLensRequest(Wire):
    """What the model would say after each block."""

    model_config = example({"analysis": "a-0123456789abcdef", "top": 3})

    analysis: AnalysisId
    top: Annotated[int, Field(ge=1, le=1000)] = 5
    position: Int = -1


class LensRequest(Wire):
    """What a unit speaks for."""

    model_config = example({"site": "blocks.2.hook_resid_pre", "unit": 1740, "top": 5})

    site: Name
    unit: Int
    top: Annotated[int, Field(ge=1, le=1000)] = 10
    scale: Annotated[float, Field(gt=0)] = 1.0


class SaveRequest(Wire):
    """An analysis to keep."""

    model_config = example({"analysis": "a-0123456789abcdef", "title": "why a dot"})

    analysis: AnalysisId
    title: Name = ""


class LabelRequest(Wire):
    """A latent's label; empty takes it back."""

    model_config = example({"label": "names of exceptions"})

    label: Name

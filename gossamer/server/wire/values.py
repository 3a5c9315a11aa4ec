"""Prompts, targets, sources and edits: each class has the name and the fields of Python's."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _encodable(text: str) -> str:
    """The text, when it has no half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "text", "Input should be a text without halves of surrogate pairs"
        ) from None
    return text


Int = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Number = float
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, AfterValidator(_encodable)]  # as long as a body may be
Ints = list[Int]
Numbers = list[Number]
Selection = Int | Ints | None
Token = Annotated[str, Field(max_length=200)] | Int
Tokens = Annotated[list[Token], Field(max_length=100)] | Token
Hold = Annotated[list[Name], Field(max_length=8)]
Error = Literal["attached", "detached", "frozen", "dropped"]
Route = Literal["q", "k", "qk", "v", "pre"]


class Wire(BaseModel):
    """Strict: no field that is not known, no text for a number, no NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Message(Wire):
    """One message of a chat."""

    role: Name
    content: Text


Prompt = Text | Ints | list[Message]
Prompts = Prompt | Annotated[list[Prompt], Field(max_length=64)]
Saes = Literal["all"] | list[Name] | None


class Logits(Wire):
    """Next-token scores: these tokens', or the highest."""

    kind: Literal["logits"]
    tokens: Tokens | None = None
    top: Int | None = None
    mass: Number | None = None
    position: Int = -1


class LogitDifference(Wire):
    """The score of one token, or set of tokens, less another's."""

    kind: Literal["logit_difference"]
    token: Tokens
    distractor: Tokens
    position: Int = -1


class _OfTokens(Wire):
    tokens: Tokens
    position: Int = -1


class LogitMinusMean(_OfTokens):
    """A score less the mean score of the vocabulary."""

    kind: Literal["logit_minus_mean"]


class Probability(_OfTokens):
    """The probability of a set of tokens."""

    kind: Literal["probability"]


class LogProbability(_OfTokens):
    """The logarithm of the same."""

    kind: Literal["log_probability"]


class KL(Wire):
    """How far edits move the prediction."""

    kind: Literal["kl"]
    position: Int = -1


class NodeValue(Wire):
    """A neuron's or latent's value."""

    kind: Literal["node_value"]
    node: Name
    of: Literal["pre", "post"] = "pre"


class ResidualDirection(Wire):
    """The residual stream along a vector."""

    kind: Literal["residual_direction"]
    site: Name
    direction: Numbers
    position: Int = -1


class Through(Wire):
    """An upstream trace."""

    kind: Literal["through"]
    node: Name
    route: Route = "pre"
    downstream: "Target | None" = None


Plain = LogitMinusMean | Probability | LogProbability | KL | NodeValue | ResidualDirection | Through
Direction = Annotated[Logits | LogitDifference | Plain, Field(discriminator="kind")]
Target = Tokens | Direction


class _Edit(Wire):
    at: Name
    latents: Selection = None
    units: Selection = None
    keys: Selection = None
    part: Literal["error"] | None = None
    along: Numbers | None = None
    positions: Selection = None
    prompts: Selection = None


class Ablate(_Edit):
    """Set to zero."""

    kind: Literal["ablate"]


class Set(_Edit):
    """Set to a number, or to a vector."""

    kind: Literal["set"]
    value: Number | Numbers


class Scale(_Edit):
    """Multiply."""

    kind: Literal["scale"]
    factor: Number


class Steer(_Edit):
    """Add a number, or a vector."""

    kind: Literal["steer"]
    direction: Number | Numbers


class Patch(_Edit):
    """Take the values of a clean run on another prompt."""

    kind: Literal["patch"]
    prompt: Prompt
    from_positions: Selection = None


class Detach(_Edit):
    """Keep the value, stop the gradient."""

    kind: Literal["detach"]


Edit = Annotated[Ablate | Set | Scale | Steer | Patch | Detach, Field(discriminator="kind")]
Edits = Annotated[list[Edit], Field(max_length=64)]


class Choice(Wire):
    """Which rows a table lists."""

    top: Annotated[int, Field(ge=1, le=2000)] = 30
    kinds: Annotated[list[Name], Field(max_length=16)] | None = None
    cut: Name | None = None
    pairs: bool = False


class Upstream(Wire):
    """A node to explain instead of the target."""

    node: Name
    route: Route = "pre"
    downstream: Target | None = None


class TokenSource(Wire):
    """A scale on each position's embedding."""

    kind: Literal["tokens"]


class Latents(Wire):
    """Active latents of one SAE."""

    kind: Literal["latents"]
    site: Name
    positions: Selection = None
    indices: Selection = None
    top: Int | None = None

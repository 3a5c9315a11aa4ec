"""From the wire to Python's values, and back.

A body's fields that were given become the arguments of the Python class of the same name; those
left out keep its defaults. Lists of numbers become tensors of the model's type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from gossamer.analysis import directions
from gossamer.analysis.analyze import Request
from gossamer.analysis.directions import Through
from gossamer.analysis.table import Choice
from gossamer.attribution import targets
from gossamer.edits import AbstractEdit
from gossamer.edits import edit as edits_module
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import check_prompt
from gossamer.saes.sae import SparseCoder
from gossamer.server import wire
from gossamer.server.faults import field
from gossamer.splice import chosen_bos, run

_CLASSES: dict[type[wire.Wire], type] = {
    wire.Logits: targets.Logits,
    wire.LogitDifference: targets.LogitDifference,
    wire.LogitMinusMean: directions.LogitMinusMean,
    wire.Probability: directions.Probability,
    wire.LogProbability: directions.LogProbability,
    wire.KL: directions.KL,
    wire.NodeValue: directions.NodeValue,
    wire.ResidualDirection: directions.ResidualDirection,
    wire.Through: directions.Through,
    wire.TokenSource: targets.Tokens,
    wire.Latents: targets.Latents,
    wire.Ablate: edits_module.Ablate,
    wire.Set: edits_module.Set,
    wire.Scale: edits_module.Scale,
    wire.Steer: edits_module.Steer,
    wire.Patch: edits_module.Patch,
    wire.Detach: edits_module.Detach,
}
_VECTORS = ("direction", "along", "value")
_EDITS = (wire.Ablate, wire.Set, wire.Scale, wire.Steer, wire.Patch, wire.Detach)


@dataclass(frozen=True, slots=True)
class Served:
    """What the values refer to."""

    model: Model
    """The model."""

    saes: Mapping[str, SparseCoder]
    """All SAEs, by the site each one writes."""

    def chosen(self, saes: Any) -> dict[str, SparseCoder]:
        """The SAEs that a body names. SiteError for one that is not there."""
        if saes is None:
            return {}
        names = list(self.saes) if saes == "all" else saes
        for name in names:
            if name not in self.saes:
                with field("saes"):
                    raise SiteError(
                        f"No SAE writes {name}. The SAEs here write: "
                        f"{', '.join(self.saes) or 'nowhere'}."
                    )
        return {name: self.saes[name] for name in names}


def fields_of(body: wire.Wire, *without: str) -> dict[str, Any]:
    """The fields that were given, as they are."""
    names = [name for name in body.model_fields_set if name not in ("kind", *without)]
    return {name: getattr(body, name) for name in names}


def value_of(served: Served, body: Any) -> Any:
    """A target, a source, or an edit without a source, as Python's; tokens as they are."""
    if not isinstance(body, wire.Wire):
        return body
    given = fields_of(body, "prompt")
    for name in _VECTORS:
        if isinstance(given.get(name), list):
            given[name] = torch.tensor(
                given[name], dtype=served.model.dtype, device=served.model.device
            )
    if "downstream" in given:
        given["downstream"] = value_of(served, given["downstream"])
    return _CLASSES[type(body)](**given)


def prompt_of(served: Served, prompt: Any) -> Any:
    """One prompt as Python takes it. PromptError for a chat that the tokenizer cannot render."""
    if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], wire.Message)):
        return prompt
    messages = [message.model_dump() for message in prompt]
    try:
        served.model.tokenize(messages)
    except GossamerError:
        raise
    except Exception as problem:  # a template may raise whatever it likes
        first = str(problem).strip().splitlines()[0][:200]
        raise PromptError(
            f"The tokenizer cannot render these messages ({first}); give a text or token ids."
        ) from problem
    return messages


def prompts_of(served: Served, prompts: Any) -> Any:
    """One prompt, or a list of them."""
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int | wire.Message):
        return [prompt_of(served, prompt) for prompt in prompts]
    return prompt_of(served, prompts)


def n_prompts(prompts: Any) -> int:
    """How many prompts a body has."""
    many = isinstance(prompts, list) and not (
        prompts and isinstance(prompts[0], int | wire.Message)
    )
    return len(prompts) if many else 1


def edits_of(
    served: Served,
    edits: Sequence[Any],
    saes: Mapping[str, SparseCoder],
    prepend_bos: bool | None,
) -> tuple[AbstractEdit, ...]:
    """Edits as Python's; the source of a patch is run here."""
    found: list[AbstractEdit] = []
    for number, body in enumerate(edits):
        with field(f"edits.{number}"):
            found.append(_edit_of(served, body, saes, prepend_bos))
    return tuple(found)


def _edit_of(
    served: Served, body: Any, saes: Mapping[str, SparseCoder], prepend_bos: bool | None
) -> AbstractEdit:
    if not isinstance(body, wire.Patch):
        return value_of(served, body)
    place = wire.Ablate(kind="ablate", **fields_of(body, "prompt", "from_positions"))
    given = value_of(served, place)
    kept = {each.name: getattr(given, each.name) for each in fields(given)}
    prompt = prompt_of(served, body.prompt)
    with torch.no_grad():
        source = run(
            served.model, prompt, saes, record=given.at, logits=False, prepend_bos=prepend_bos
        )
    return edits_module.Patch(**kept, source=source, from_positions=body.from_positions)


def request_of(served: Served, body: wire.AnalysisRequest) -> Request:
    """An analysis as Python's, its prompt checked. GossamerError says which field is wrong."""
    saes = served.chosen(body.saes)
    with field("prompt"):
        prompt = prompt_of(served, body.prompt)
        if isinstance(prompt, list) and not prompt:
            raise PromptError("The prompt is empty. Give at least one token.")
        model = served.model
        bos = chosen_bos(body.prepend_bos, saes.values(), [prompt])
        check_prompt(model.tokenize(prompt, bos), model.context_length, model.d_vocab)
    edits = edits_of(served, body.edits, saes, body.prepend_bos)
    with field("target"):
        target = value_of(served, body.target)
    upstream = None
    if body.upstream is not None:
        with field("upstream"):
            given = fields_of(body.upstream, "downstream")
            upstream = Through(**given, downstream=value_of(served, body.upstream.downstream))
    with field("choice"):
        choice = choice_of(body.choice)
    return Request(
        prompt=prompt,
        target=target,
        saes=saes,
        edits=edits,
        upstream=upstream,
        hold=tuple(body.hold),
        error=body.error,
        choice=choice,
        prepend_bos=body.prepend_bos,
    )


def choice_of(body: wire.Choice) -> Choice:
    """Which rows are listed."""
    kinds = None if body.kinds is None else tuple(body.kinds)
    return Choice(top=body.top, kinds=kinds, cut=body.cut, pairs=body.pairs)


def analysis_request(body: wire.UpstreamRequest) -> wire.AnalysisRequest:
    """The same as one of /analyze."""
    given = fields_of(body, "node", "through")
    upstream = wire.Upstream(node=body.node, route=body.through)
    return wire.AnalysisRequest.model_construct(
        _fields_set={*given, "upstream"}, **{**_defaults(), **given}, upstream=upstream
    )


def _defaults() -> dict[str, Any]:
    every = wire.AnalysisRequest.model_fields
    return {
        name: each.get_default(call_default_factory=True)
        for name, each in every.items()
        if name not in ("prompt", "upstream")
    }


def to_wire(value: Any) -> Any:
    """The inverse: a Python value as a body, its fields that are not the defaults. GossamerError
    for a Patch, whose source is a run and not a value."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [to_wire(each) for each in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    if isinstance(value, edits_module.Patch):
        raise GossamerError("A Patch goes over the wire as the prompt that it takes values from.")
    kind = next((body for body, cls in _CLASSES.items() if cls is type(value)), None)
    given = {each.name: getattr(value, each.name) for each in fields(value)}
    plain = {n: to_wire(v) for n, v in given.items() if v is not None and n != "saes"}
    if kind is None:
        return plain
    return {"kind": get_args(kind.model_fields["kind"].annotation)[0], **plain}

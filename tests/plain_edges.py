"""The oracle of laws 3 and 4: effects as one dense function over the plain model, and its Jacobian.

    h(v) = read(M(write(v)))      gradients = ∂h/∂v by torch.func.jacrev

`PlainEffects` holds h for one prompt: v is the vector of active source latents (or one scale for
each token), M the model of `plain_model.py`, what is held or blocked a constant put in at its site,
the source's error a constant. Central differences of the same h are the second reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.attribution.targets import Latents, LogitDifference, Logits, Source, Target, Tokens
from tests.plain_model import kind_of, plain_run
from tests.tiny_saes import plain_active, plain_decode, plain_latents, plain_pre

Pairs = list[tuple[int, int]]
"""(position, index) of nodes, sorted."""


@dataclass(frozen=True)
class PlainEffects:
    """One prompt, one source, one target."""

    function: Callable[[Tensor], Tensor]
    """From the sources' values to the targets' pre-activations or logits."""

    point: Tensor
    """The sources' values in the clean run."""

    sources: Pairs
    targets: Pairs
    """The columns and the rows."""

    def gradients(self) -> Tensor:
        """The dense Jacobian, by reverse mode."""
        return torch.func.jacrev(self.function)(self.point)

    @torch.no_grad()
    def differences(self, step: float = 1e-5) -> Tensor:
        """The same by central differences, one source at a time."""
        columns = []
        for column in range(len(self.point)):
            up, down = self.point.clone(), self.point.clone()
            up[column] += step
            down[column] -= step
            columns.append((self.function(up) - self.function(down)) / (2 * step))
        return torch.stack(columns, 1)


def active_pairs(coder: Any, x: Tensor) -> Pairs:
    """(position, latent) of the active latents on (pos, d_in)."""
    return [(int(p), int(i)) for p, i in plain_active(coder, x).nonzero()]


def plain_effects(
    model: Any,
    coders: Mapping[str, Any],
    ids: Sequence[int],
    source: Source,
    target: Target,
    *,
    hold: Sequence[str] = (),
    direct: bool = False,
    error: str = "frozen",
) -> PlainEffects:
    """The effects of `source` on `target`; both take every active node, logits by token id."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        clean = plain_run(model, ids)
        write, point, sources = _written(model, coders, clean, source, error)
        site = _write_site(model, source)
        start = plain_run(model, ids, {site: lambda _: write(point)})
    read, targets = _reader(coders, clean, target)
    endings = {"attention": "hook_pattern", "norms": "hook_scale"}
    blocked = {s for s in clean if any(s.endswith(endings.get(name, "/")) for name in hold)}
    if "mlps" in hold:
        blocked |= {s for s, c in coders.items() if s.endswith("mlp_out") and c.site_in != s}
    if direct:
        ends = {getattr(target, "site", None), site}
        blocked |= {s for s in coders if s not in ends and _after(clean, s, site)}
    constants = {s: (lambda _, c=start[s]: c) for s in blocked if _after(clean, s, site)}

    def function(values: Tensor) -> Tensor:
        return read(plain_run(model, ids, {**constants, site: lambda _: write(values)}))

    return PlainEffects(function, point, sources, targets)


def _after(clean: Mapping[str, Tensor], site: str, other: str) -> bool:
    """Whether a site comes after another one in the run, whose values are in order."""
    order = list(clean)
    return order.index(site) > order.index(other)


def _write_site(model: Any, source: Source) -> str:
    if isinstance(source, Latents):
        return source.site
    return "blocks.0.hook_resid_pre" if kind_of(model) == "gpt2" else "hook_embed"


def _written(
    model: Any, coders: Mapping[str, Any], clean: Mapping[str, Tensor], source: Source, error: str
) -> tuple[Callable[[Tensor], Tensor], Tensor, Pairs]:
    """(what the sources' values make of the site they write, those values, who they are)."""
    if isinstance(source, Tokens):
        start = clean[_write_site(model, source)]
        pairs = [(p, 0) for p in range(len(start))]
        return lambda scales: scales[:, None] * start, torch.ones(len(start)).to(start), pairs
    coder = coders[source.site]
    x, y = clean[coder.site_in].flatten(1), clean[coder.site_out].flatten(1)
    latents, pairs = plain_latents(coder, x), active_pairs(coder, x)
    index = tuple(torch.tensor(pairs).T)
    missed = 0 if error == "dropped" else y - plain_decode(coder, latents, x)
    shape = clean[coder.site_out].shape

    def write(values: Tensor) -> Tensor:
        dense = torch.zeros_like(latents).index_put(index, values)
        return (plain_decode(coder, dense, x) + missed).reshape(shape)

    return write, latents[index], pairs


def _reader(
    coders: Mapping[str, Any], clean: Mapping[str, Tensor], target: Target
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], Pairs]:
    """(targets from the values at sites, who they are)."""
    if isinstance(target, Latents):
        coder = coders[target.site]
        pairs = active_pairs(coder, clean[coder.site_in].flatten(1))
        index = tuple(torch.tensor(pairs).T)
        return lambda values: plain_pre(coder, values[coder.site_in].flatten(1))[index], pairs
    n = len(clean["logits"])
    position = target.position % n
    if isinstance(target, LogitDifference):
        pair = (target.token, target.distractor)
        return (
            lambda values: (
                values["logits"][position, pair[0]] - values["logits"][position, pair[1]]
            )[None],
            [(position, int(pair[0]))],
        )
    assert isinstance(target, Logits) and isinstance(target.tokens, list)
    tokens = [int(token) for token in target.tokens]
    return lambda values: values["logits"][position, tokens], [(position, t) for t in tokens]

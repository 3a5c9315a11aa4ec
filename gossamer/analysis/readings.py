"""How the number that a direction names is read off a run, with its gradient.

    s = what `of` gives            r = the residual stream at `residual`, the last before s
    s = Σ_t g[t] · r[t] + constant,     g = ∂s/∂r

With norm scales held s is affine in r for every linear direction, and the constant is its bias;
else the constant is the remainder: what of s is not linear in r.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.analysis.directions import (
    KL,
    Direction,
    LogitMinusMean,
    LogProbability,
    NodeValue,
    Probability,
    ResidualDirection,
    Through,
    Tokens,
    as_direction,
    is_residual,
)
from gossamer.analysis.writes import projection
from gossamer.attribution.targets import LogitDifference, Logits
from gossamer.errors import GossamerError, PromptError, ShapeError, SiteError
from gossamer.models.blocks import BlockSetting
from gossamer.models.model import Model
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_node, parse_site
from gossamer.splice import flat

FINAL = "ln_final.hook_normalized"
"""Where logits are read."""

_UNITS = ("mlp.hook_post", "mlp.hook_pre")
"""Sites whose coordinates are neurons."""

_AFFINE = ("mlp.hook_in", "ln2.hook_normalized", "ln1.hook_normalized", FINAL, "attn.hook_q")
_AFFINE = (*_AFFINE, "attn.hook_k", "attn.hook_v")
"""Kinds of site between which and the stream there is nothing but a norm and a projection."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass showed, with its graph."""

    model: Model
    """The model that ran."""

    values: Mapping[str, Tensor]
    """(batch, pos, …) by site."""

    pre_activations: Mapping[str, Tensor]
    """Of spliced SAEs, by the site they write."""

    settings: Mapping[int, BlockSetting]
    """How each block's attention was called."""


Value = Callable[[Seen, int, Tensor | None], Tensor]
"""(what was seen, row of the batch, what it is read along) → s. Read along: the direction
downstream of a trace through v, (pos, d_model); the clean log-probabilities of a KL, (d_vocab);
else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One direction of one prompt, ready to be read."""

    direction: Direction
    """What was asked."""

    sites: tuple[str, ...]
    """Sites that must be seen."""

    residual: str
    """The stream that s is read from."""

    position: int
    """Where s is, from 0."""

    constant: str
    """Id of the row of what of s no node of the stream gives."""

    times: int = 1
    """How often s is counted in the sum of all rows: twice in a trace through q and k."""

    of: Value
    """s, a scalar tensor."""

    downstream: "Reading | None" = None
    """Of a trace through v: what it is traced from."""


def reading(  # noqa: PLR0917  what is read, and in which run
    model: Model,
    saes: Mapping[str, SparseCoder],
    direction: Direction,
    n: int,
    hold: tuple[str, ...],
) -> Reading:
    """How `direction` is read in a prompt of n tokens. Errors for what is not there."""
    if isinstance(direction, NodeValue):
        return _of_node(model, saes, direction, n, hold)
    if isinstance(direction, ResidualDirection):
        return _of_stream(model, direction, n)
    if isinstance(direction, Through):
        if direction.route == "pre":
            found = _of_node(model, saes, NodeValue(direction.node), n, hold)
            return _renamed(found, direction)
        return _of_head(model, saes, direction, n, hold)
    return _of_logits(model, direction, n, hold)


def _renamed(found: Reading, direction: Direction) -> Reading:
    return Reading(
        direction=direction,
        sites=found.sites,
        residual=found.residual,
        position=found.position,
        constant=found.constant,
        of=found.of,
    )


def at_position(position: int, n: int) -> int:
    """A position from 0. PromptError when the prompt does not have it."""
    if not -n <= position < n:
        raise PromptError(
            f"Position {position} is not in the prompt, which has {n} tokens (0..{n - 1})."
        )
    return position % n


def read_before(model: Model, site: str) -> str:
    """The last residual stream from which the value at a site is made."""
    parsed = parse_site(site)
    if is_residual(site):
        return site
    if parsed.layer is None:
        if site.startswith("ln_final") or site == "logits":
            return f"blocks.{model.n_layers - 1}.hook_resid_post"
        raise SiteError(f"Nothing is upstream of {site}; name a site inside the blocks.")
    inside_mlp = parsed.kind.startswith(("ln2", "mlp", "hook_mlp"))
    kind = "hook_resid_mid" if inside_mlp and not model.layout.parallel else "hook_resid_pre"
    return f"blocks.{parsed.layer}.{kind}"


def _constant(name: str, position: int, affine: bool) -> str:
    return f"{name}/{'bias' if affine else 'remainder'}@{position}"


# Logits


def logits_at(
    seen: Seen, row: int, position: int, ids: Int64[Tensor, " n_ids"] | None = None
) -> Float[Tensor, " n_ids"]:
    """Scores of some tokens, or all, before any soft-cap."""
    layout, language_model = seen.model.layout, seen.model.language_model
    norm = language_model.get_submodule(layout.adapter.ln_final)
    gain = layout.adapter.gain_offset + norm.get_parameter("weight").detach()
    hidden = seen.values[FINAL][row, position] * gain
    own = getattr(norm, "bias", None)
    hidden = hidden if own is None else hidden + own.detach()
    head = language_model.get_output_embeddings()
    wanted = slice(None) if ids is None else ids
    bias = getattr(head, "bias", None)
    return F.linear(
        hidden, head.weight.detach()[wanted], None if bias is None else bias.detach()[wanted]
    )


def capped(model: Model, logits: Float[Tensor, " n_ids"]) -> Float[Tensor, " n_ids"]:
    """The scores that the model gives, from those before its soft-cap."""
    cap = getattr(model.language_model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_ids(model: Model, tokens: Tokens) -> Int64[Tensor, " n_ids"]:
    """Ids of tokens that count together, each once. PromptError for none."""
    named = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not named:
        raise PromptError("A direction names at least one token, got none.")
    ids = dict.fromkeys(model.token_id(token) for token in named)
    return torch.tensor(list(ids), device=model.device)


def _of_logits(model: Model, direction: Any, n: int, hold: tuple[str, ...]) -> Reading:
    position = at_position(direction.position, n)
    linear = isinstance(direction, Logits | LogitDifference | LogitMinusMean)
    return Reading(
        direction=direction,
        sites=(FINAL,),
        residual=read_before(model, FINAL),
        position=position,
        constant=_constant("logits", position, linear and "norms" in hold),
        of=_logit_value(model, direction, position),
    )


def _logit_value(model: Model, direction: Any, position: int) -> Value:
    """s of a direction of the logits."""
    match direction:
        case LogitDifference():
            plus = token_ids(model, direction.token)
            minus = token_ids(model, direction.distractor)
            return lambda seen, row, _: (
                logits_at(seen, row, position, plus).mean()
                - logits_at(seen, row, position, minus).mean()
            )
        case KL():
            return lambda seen, row, clean: _kl(seen, row, position, clean)
        case Logits(tokens=None):
            if direction.top is not None or direction.mass is not None:
                raise GossamerError(
                    "A table explains one number, and Logits(top=…) or (mass=…) names several; "
                    "name the tokens."
                )
            return lambda seen, row, _: logits_at(seen, row, position).max()
    ids = token_ids(model, direction.tokens)
    match direction:
        case Logits():
            return lambda seen, row, _: logits_at(seen, row, position, ids).mean()
        case LogitMinusMean():

            def less_mean(seen: Seen, row: int, _: Tensor | None) -> Tensor:
                logits = logits_at(seen, row, position)
                return logits[ids].mean() - logits.mean()

            return less_mean
    logarithm = isinstance(direction, LogProbability)
    assert isinstance(direction, Probability | LogProbability)

    def probability(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        logs = capped(model, logits_at(seen, row, position)).log_softmax(-1)
        total = logs[ids].logsumexp(-1)
        return total if logarithm else total.exp()

    return probability


def _kl(seen: Seen, row: int, position: int, clean: Tensor | None) -> Tensor:
    """KL from the clean prediction, whose log-probabilities are `clean`."""
    logs = capped(seen.model, logits_at(seen, row, position)).log_softmax(-1)
    clean = logs.detach() if clean is None else clean
    return (clean.exp() * (clean - logs)).sum()


# Neurons, latents and directions of the stream


def _of_node(  # noqa: PLR0917  the arguments of `reading`
    model: Model,
    saes: Mapping[str, SparseCoder],
    direction: NodeValue,
    n: int,
    hold: tuple[str, ...],
) -> Reading:
    node = parse_node(direction.node)
    position, unit = at_position(node.position, n), int(node.unit)
    if node.key_position is not None:
        raise SiteError(f'"{direction.node}" is a head, whose value is a vector; use Through.')
    if node.site in saes:
        sae = saes[node.site]
        site, value = sae.site_in, _latent_value(sae, unit, position, direction)
        affine = (_is_affine(site) or is_residual(site)) and _is_linear(sae, hold)
        sites = (site, read_before(model, site))
    else:
        model.check_site(node.site)
        kind = parse_site(node.site).kind
        if kind not in _UNITS:
            raise SiteError(
                f"{node.site} has no neurons, and no SAE is given that writes there; SAEs write "
                f"{', '.join(saes) or 'nowhere'} here, and neurons are at blocks.N.mlp.hook_post."
            )
        pre = node.site.replace("hook_post", "hook_pre")
        site = pre if direction.of == "pre" else node.site
        width = model.width(site)
        if unit >= width:
            raise SiteError(f"{unit} is not a neuron of {node.site}; choose from 0..{width - 1}.")
        value, affine = _coordinate(site, position, unit), direction.of == "pre"
        sites = (site, read_before(model, site))
    return Reading(
        direction=direction,
        sites=sites,
        residual=sites[1],
        position=position,
        constant=_constant(
            node.site if node.site in saes else site,
            position,
            affine and ("norms" in hold or is_residual(site)),
        ),
        of=value,
    )


def _is_affine(site: str) -> bool:
    parsed = parse_site(site)
    return parsed.kind in _AFFINE


def _is_linear(sae: SparseCoder, hold: tuple[str, ...]) -> bool:
    """Whether a latent's pre-activation is affine in what its SAE reads."""
    return isinstance(sae, SAE) and sae.normalization in ("none", "center")


def _coordinate(site: str, position: int, unit: int) -> Value:
    return lambda seen, row, _: seen.values[site][row, position, unit]


def _latent_value(sae: SparseCoder, unit: int, position: int, direction: NodeValue) -> Value:
    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        x = flat(seen.values[sae.site_in])[row, position][None]
        if not isinstance(sae, SAE):
            pre = sae.encode(x)[0]
        elif sae.site_out in seen.pre_activations:
            pre = seen.pre_activations[sae.site_out][row, position]
        else:
            pre = sae.pre_activations(x)[0]
        if unit >= len(pre):
            raise SiteError(
                f"{unit} is not a latent of the SAE at {sae.site_out}; choose from "
                f"0..{len(pre) - 1}."
            )
        if direction.of == "post" and isinstance(sae, SAE) and not sae.activate(pre)[unit]:
            return pre[unit] * 0
        return pre[unit]

    return value


def _of_stream(model: Model, direction: ResidualDirection, n: int) -> Reading:
    model.check_site(direction.site)
    position, site = at_position(direction.position, n), direction.site
    if len(direction.direction) != model.d_model:
        raise ShapeError(
            f"The direction has {len(direction.direction)} numbers, the residual stream of "
            f"{model.name} {model.d_model}."
        )

    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        x = seen.values[site][row, position]
        return x @ direction.direction.to(x)

    return Reading(
        direction=direction,
        sites=(site,),
        residual=site,
        position=position,
        constant=_constant(site, position, True),
        of=value,
    )


# Heads


def _of_head(  # noqa: PLR0917  the arguments of `reading`
    model: Model,
    saes: Mapping[str, SparseCoder],
    direction: Through,
    n: int,
    hold: tuple[str, ...],
) -> Reading:
    node = parse_node(direction.node)
    model.check_site(node.site)
    query, head, layer = at_position(node.position, n), int(node.unit), parse_site(node.site).layer
    n_heads = model.language_model.config.num_attention_heads
    if head >= n_heads:
        raise SiteError(f"{head} is not a head of {node.site}; choose from 0..{n_heads - 1}.")
    key = None if node.key_position is None else at_position(node.key_position, n)
    at = f"blocks.{layer}."
    rotated = "rot_" if model.layout.adapter.attention.rotary else ""
    q, k = f"{at}attn.hook_{rotated}q", f"{at}attn.hook_{rotated}k"
    residual = f"{at}hook_resid_pre"
    if direction.route == "v":
        downstream = reading(model, saes, as_direction(direction.downstream), n, hold)
        if isinstance(downstream.direction, Through) and downstream.downstream is not None:
            raise GossamerError(
                "The direction downstream of a trace through v is not itself a trace through v; "
                "name a neuron, a latent, a score or a token."
            )
        if parse_site(downstream.residual).order <= parse_site(f"{at}hook_attn_out").order:
            raise SiteError(
                f"The head {direction.node} is not upstream of the direction it should be read "
                f"along, which reads {downstream.residual}; name a later one."
            )
        sites = (f"{at}attn.hook_v", f"{at}attn.hook_pattern", residual)
        post = (f"{at}ln1_post.hook_scale",) if model.layout.adapter.ln1_post else ()
        return Reading(
            direction=direction,
            sites=(*sites, *post, *downstream.sites),
            residual=residual,
            position=query,
            constant=_constant(f"{at}attn.hook_v", query, "norms" in hold),
            of=_written_value(layer or 0, head, query, key),
            downstream=downstream,
        )
    assert key is not None
    return Reading(
        direction=direction,
        sites=(q, k, residual),
        residual=residual,
        position=query,
        constant=_constant(
            f"{at}attn.hook_{direction.route}" if direction.route != "qk" else f"{at}attn",
            query,
            "norms" in hold,
        ),
        times=2 if direction.route == "qk" else 1,
        of=_score_value(layer or 0, (q, k), head=head, pair=(query, key), route=direction.route),
    )


def _score_value(
    layer: int, sites: tuple[str, str], *, head: int, pair: tuple[int, int], route: str
) -> Value:
    """q · k · scaling, the side that the route does not take held."""

    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        setting = seen.settings[layer].attention
        allowed = setting.allowed.expand(len(seen.values[sites[0]]), -1, -1, -1)
        if not bool(allowed[row, 0, pair[0], pair[1]]):
            raise SiteError(
                f"In block {layer} query {pair[0]} cannot see key {pair[1]}, which is outside its "
                "window; name a key that it sees."
            )
        queries, keys = (seen.values[site] for site in sites)
        group = queries.shape[2] // keys.shape[2]
        q, k = queries[row, pair[0], head], keys[row, pair[1], head // group]
        score = torch.zeros_like(q.sum())
        if "q" in route:
            score = score + (q * k.detach()).sum()
        if "k" in route:
            score = score + (q.detach() * k).sum()
        return score * setting.scaling

    return value


def _written_value(layer: int, head: int, query: int, key: int | None) -> Value:
    """A · v W_O · g, with A and g held."""

    def value(seen: Seen, row: int, along: Tensor | None) -> Tensor:
        assert along is not None
        at, layout = f"blocks.{layer}.", seen.model.layout
        local = {site: v[row, query : query + 1].detach() for site, v in seen.values.items()}
        weight, _, norm = projection(layout, local, layer, "attn")
        g = along[query][None]
        g = (g if norm is None else norm.pulled(g))[0] @ weight
        values = seen.values[f"{at}attn.hook_v"]
        patterns = seen.values[f"{at}attn.hook_pattern"]
        pattern = patterns[row, head, query].detach()
        v = values[row, :, head // (patterns.shape[1] // values.shape[2])]
        g = g.unflatten(0, (-1, v.shape[-1]))[head].to(v)
        keys = slice(None) if key is None else slice(key, key + 1)
        return (pattern[keys] * (v[keys] @ g)).sum()

    return value

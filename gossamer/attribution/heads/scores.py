"""Which parts of the stream make a head look from one position at another.

With the norms' scales held, a head's query and key are affine in the streams that they are read
from, so that its score is a sum over pairs of parts:

    score(q, k) = scaling · Σ_i Σ_j q_i · k_j        q_i = rotate(norm(W_Q ln1(x_i)))

i runs over the parts of the stream at the query's position and the bias of what reads them, j
likewise at the key's (https://transformer-circuits.pub/2025/attention-qk).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gossamer.attribution.heads.pairs import QKAttributions, Side
from gossamer.attribution.heads.stream import Stream
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.held import HeldNorm, held_norm
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch, are_many, as_prompts
from gossamer.models.taps import remember
from gossamer.sites import NodeId, parse_node, parse_site
from gossamer.splice import as_saes, check_saes, chosen_bos


def qk_attributions(
    model: Model, saes: Any, prompt: Any, head: str, *, against: int | None = None
) -> QKAttributions:
    """Which pairs of parts, at the query and at the key, make up an attention score.

    Args:
        model: the model.
        saes: None, one SAE, several, or a mapping. Those that write into the residual stream before
            the head's block stand for it: the latest SAE at the stream itself, and SAEs and
            transcoders at outputs of later modules.
        prompt: a text, token ids or chat messages; or a Graph of the prompt.
        head: the head and both positions, blocks.9.attn.hook_z/6@14<-4: head 6 of block 9, query
            14, key 4.
        against: another key's position; the score is then how much higher the head scores the key
            than this one, which is all that a softmax sees.

    The score is the one before any soft-cap. Values are the clean run's: what an SAE misses is a
    part, its error. SiteError for what is no head of the model or a key that the query cannot see,
    PromptError for a position that the prompt does not have.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    if isinstance(prompt, Graph):
        prompt = list(prompt.token_ids)
    if are_many(prompt):
        raise PromptError("qk_attributions takes one prompt, got a list; call it for each.")
    prompts = as_prompts(prompt)
    batch = model.batch(prompts, prepend_bos=chosen_bos(None, coders.values(), prompts))
    ids = batch.tokens[0].tolist()
    node, keys = _checked(model, head, against, len(ids))
    layer = parse_site(node.site).layer or 0
    needed = Stream(model, coders, layer, ids, {}).needed()
    seen = _run(model, batch, layer, needed)
    setting = seen.setting.attention
    for key in keys:
        if not bool(setting.allowed[0, 0, node.position, key]):
            raise SiteError(
                f"In block {layer} query {node.position} cannot see key {key}, which is outside "
                "its window; name a key that it sees."
            )
    stream = Stream(model, coders, layer, ids, seen.values)
    number = int(node.unit)
    mine = seen.keys_of(number)
    sides = [_side(stream, _reader(seen, "k", mine, key), key) for key in keys]
    sides[1:] = [side.negative() for side in sides[1:]]
    scores = [seen.score(number, node.position, key) for key in keys]
    pattern = seen.values[f"blocks.{layer}.attn.hook_pattern"][0, number, node.position]
    return QKAttributions(
        head=str(node),
        against=keys[1] if len(keys) > 1 else None,
        score=scores[0] - sum(scores[1:]),
        pattern=tuple(float(pattern[key]) for key in keys),
        softcap=setting.softcap,
        scaling=setting.scaling,
        query=_side(stream, _reader(seen, "q", number, node.position), node.position),
        key=sides[0] if len(sides) == 1 else sides[0].followed_by(sides[1]),
    )


def _checked(model: Model, head: str, against: int | None, n: int) -> tuple[NodeId, list[int]]:
    """The head, and the key positions: its own and that it is compared with."""
    node = parse_node(head)
    model.check_site(node.site)
    n_heads = model.language_model.config.num_attention_heads
    if parse_site(node.site).kind != "attn.hook_z" or node.key_position is None:
        raise SiteError(
            f"{head} is no head with a query and a key; write one as blocks.2.attn.hook_z/6@14<-4, "
            "head 6, query 14, key 4."
        )
    if not isinstance(node.unit, int) or node.unit >= n_heads:
        raise SiteError(f"{node.unit} is not a head of {node.site}; choose from 0..{n_heads - 1}.")
    keys = [node.key_position]
    if against is not None:
        if not -n <= against < n:
            raise PromptError(
                f"Position {against} is not in the prompt, which has {n} tokens (0..{n - 1})."
            )
        keys.append(against % n)
    for position in (node.position, *keys):
        if position >= n:
            raise PromptError(
                f"Position {position} is not in the prompt, which has {n} tokens (0..{n - 1})."
            )
    for key in keys:
        if key > node.position:
            raise SiteError(
                f"Key {key} comes after query {node.position}, and no head looks ahead; name a key "
                f"from 0..{node.position}."
            )
    if len(set(keys)) < len(keys):
        raise GossamerError(
            f"The key and the one it is compared with are both {keys[0]}; name another in against=."
        )
    return node, keys


@dataclass(frozen=True)
class _Seen:
    """The clean run, as far as one block's attention."""

    model: Model
    """What ran."""

    layer: int
    """Which block."""

    values: Mapping[str, Tensor]
    """(1, pos, …) by site."""

    setting: BlockSetting
    """How its attention was called."""

    def site(self, kind: str) -> str:
        """A site of the block."""
        return f"blocks.{self.layer}.{kind}"

    def keys_of(self, head: int) -> int:
        """The key that a head looks for, which heads may share."""
        queries, keys = (self.values[self.site(f"attn.hook_{s}")] for s in self.rotated)
        return head // (queries.shape[2] // keys.shape[2])

    @cached_property
    def rotated(self) -> tuple[str, str]:
        """Query and key as they meet."""
        rotary = self.model.layout.adapter.attention.rotary
        return ("rot_q", "rot_k") if rotary else ("q", "k")

    def score(self, head: int, query: int, key: int) -> float:
        """q · k · scaling, in float64."""
        q, k = (self.values[self.site(f"attn.hook_{s}")][0] for s in self.rotated)
        product = _wide(q[query, head]) @ _wide(k[key, self.keys_of(head)])
        return float(product) * self.setting.attention.scaling


def _run(model: Model, batch: TokenBatch, layer: int, needed: set[str]) -> _Seen:
    """Run the prompt as far as the block's attention."""
    kinds = (
        *("ln1.hook_scale", "attn.hook_q", "attn.hook_k", "attn.hook_rot_q", "attn.hook_rot_k"),
        *("attn.q_norm.hook_scale", "attn.k_norm.hook_scale", "attn.hook_pattern"),
    )
    here = {f"blocks.{layer}.{kind}" for kind in kinds} & set(model.sites)
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    with torch.no_grad(), noted(model.layout, settings):
        taps = {site: remember(values, site) for site in needed | here}
        model.forward(batch, taps, to_the_end=False)
    return _Seen(model, layer, values, settings[layer])


@dataclass(frozen=True)
class _Reader:
    """How one head's query or key is read from the stream at one position, scales held; float64."""

    site: str
    """Where it is, attn.hook_q or attn.hook_k."""

    ln1: HeldNorm
    """The norm before attention."""

    weight: Float[Tensor, "d_head d_model"]
    """W_Q or W_K of the head."""

    norm: HeldNorm | None
    """The norm of queries or keys, in families that have one."""

    rotation: tuple[Float[Tensor, " d_rotary"], Float[Tensor, " d_rotary"]] | None
    """Cosines and sines at the position."""

    bias: Float[Tensor, " d_head"] | None
    """What is read of a stream of zeros, before norm and rotation."""

    def read(self, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_head"]:
        """What the head makes of parts of the stream."""
        return self._behind(self.ln1.out(rows[None])[0] @ self.weight.T)

    def constant(self) -> Float[Tensor, "1 d_head"] | None:
        """What it makes of a stream of zeros; None without biases."""
        return None if self.bias is None else self._behind(self.bias[None])

    def _behind(self, rows: Float[Tensor, "n d_head"]) -> Float[Tensor, "n d_head"]:
        """Through norm and rotation."""
        rows = rows if self.norm is None else self.norm.out(rows[None])[0]
        if self.rotation is None:
            return rows
        cos, sin = self.rotation
        turned, kept = rows[:, : len(cos)], rows[:, len(cos) :]
        first, second = turned.chunk(2, dim=1)
        return torch.cat([turned * cos + torch.cat([-second, first], 1) * sin, kept], 1)


def _wide(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float64, on the CPU: not every accelerator has it."""
    return value.detach().cpu().double()


def _reader(seen: _Seen, which: str, head: int, position: int) -> _Reader:
    """The reader of "q" or "k"."""
    layout, layer = seen.model.layout, seen.layer
    paths = layout.adapter.attention
    ln1 = layout.part(layer, layout.adapter.ln1)
    scale = seen.values[seen.site("ln1.hook_scale")][0, position]
    weight, bias = _projection(seen, which, head)
    own = getattr(ln1, "bias", None)
    if own is not None:
        bias = weight @ _wide(own) + (0 if bias is None else bias)
    path, norm = (paths.q_norm if which == "q" else paths.k_norm), None
    if path is not None:
        scales = seen.values[seen.site(f"attn.{which}_norm.hook_scale")][0, position]
        norm = _wide_norm(held_norm(layout, layout.part(layer, path), scales[head][None]))
    rotation = None
    if seen.setting.rotation is not None:
        cos, sin = (_wide(angle[0, position]) for angle in seen.setting.rotation)
        rotation = cos, sin
    site, norm1 = seen.site(f"attn.hook_{which}"), held_norm(layout, ln1, scale[None])
    return _Reader(site, _wide_norm(norm1), weight, norm, rotation, bias)


def _wide_norm(norm: HeldNorm) -> HeldNorm:
    return norm._replace(gain=_wide(norm.gain), scale=_wide(norm.scale))


def _projection(
    seen: _Seen, which: str, head: int
) -> tuple[Float[Tensor, "d_head d_model"], Float[Tensor, " d_head"] | None]:
    """Weight and bias of one head's query or key projection."""
    layout, place = seen.model.layout, "qk".index(which)
    paths = layout.adapter.attention
    d_head = seen.values[seen.site("attn.hook_q")].shape[-1]
    path = paths.fused or (paths.query if which == "q" else paths.key)
    module: Any = layout.part(seen.layer, str(path))
    weight = module.weight.detach()
    whole: list[Tensor] = [weight if isinstance(module, nn.Linear) else weight.T]
    if getattr(module, "bias", None) is not None:
        whole.append(module.bias.detach())
    if paths.fused is not None and paths.fused_by_head:
        whole = [rows.unflatten(0, (-1, 3, d_head))[:, place] for rows in whole]
    elif paths.fused is not None:
        whole = [rows.unflatten(0, (3, -1, d_head))[place] for rows in whole]
    else:
        whole = [rows.unflatten(0, (-1, d_head)) for rows in whole]
    mine = [_wide(rows[head]) for rows in whole]
    return mine[0], mine[1] if len(mine) > 1 else None


def _side(stream: Stream, reader: _Reader, position: int) -> Side:
    """The parts of the stream at a position, as the head reads them."""
    ids: list[str] = []
    kinds: list[str] = []
    labels: list[str] = []
    values, vectors = [], []
    for part in stream.parts(position):
        ids += part.ids
        kinds += [part.kind] * len(part.ids)
        labels += part.labels
        values.append(_wide(part.values))
        vectors.append(reader.read(_wide(part.vectors)))
    constant = reader.constant()
    if constant is not None:
        ids.append(str(NodeId(reader.site, "bias", position)))
        kinds.append("bias")
        labels.append("")
        values.append(constant.new_ones(1))
        vectors.append(constant)
    return Side(
        tuple(ids),
        tuple(kinds),
        np.full(len(ids), position),
        torch.cat(values).numpy(),
        tuple(labels),
        torch.cat(vectors).numpy(),
    )

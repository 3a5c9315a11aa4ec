"""`mlp_jacobian`: how each active latent before an MLP moves each active latent after it.

With W_i what a latent before the MLP writes, E_j what one after it reads, and x the activation
before it (or the SAE's reconstruction of it):

    J[t, j, i] = E_j · ∂y/∂x (x_t) · W_i

the derivative of decode → MLP → encode with both active sets held: Farnik et al. 2025 (arXiv
2502.18147), appendix A, for any elementwise activation, gated MLPs, and norms on the way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.jacobian.entries import (
    TABLE_MEMORY,
    How,
    between,
    make_tables,
    observed,
    promoted,
    recorded,
)
from gossamer.jacobian.passage import Linear, passage
from gossamer.jacobian.products import JacobianTables, from_rows
from gossamer.jacobian.sides import Side
from gossamer.models.mlps import MLP
from gossamer.models.model import Model
from gossamer.models.prompts import are_many, as_prompts
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.splice import check_saes, chosen_bos, flat, run


def mlp_jacobian(  # noqa: PLR0913, PLR0917  the public face, fixed by the design
    model: Model,
    layer: int,
    sae_in: SparseCoder,
    sae_out: SparseCoder,
    prompt: Any,
    *,
    at: str = "input",
    hold: Sequence[str] = (),
    skip: bool | None = None,
    method: str = "auto",
    tables: JacobianTables | None = None,
    skip_below: float = 0.0,
    memory: int = TABLE_MEMORY,
    prepend_bos: bool | None = None,
) -> Any:
    """The Jacobian of one prompt, or a list of them for a list of prompts.

    Args:
        model: the model.
        layer: the block whose MLP it is.
        sae_in: writes `mlp.hook_in`, `ln2.hook_normalized` or `hook_resid_mid` of that block.
        sae_out: reads its `hook_mlp_out` or `hook_resid_post`.
        prompt: a text, token ids, chat messages, or a list of these.
        at: where the MLP is evaluated: at its true input, or at what `sae_in` makes of it; the
            active latents after it are those of the same point.
        hold: ("norms",) takes the scale of every norm on the way as a constant.
        skip: whether the residual stream's way past the MLP counts, from hook_resid_mid to
            hook_resid_post; None: it does there.
        method: how (see `products.py`); "auto": tables where they are given, or pay for this many
            tokens and fit.
        tables: of an earlier `jacobian_tables` with the same SAEs.
        skip_below: leave out hidden units with slopes up to this size, where that is faster;
            `Jacobian.bound` then says what they can add to an entry.
        memory: bytes that tables may take, and that the entries may.
        prepend_bos: overrides what the SAEs' files and the family say.
    """
    how = How(at=at, method=method, tables=tables, skip_below=skip_below, memory=memory)
    pair = (sae_in, sae_out)
    for sae in pair:
        check_saes(model, {sae.site_out: sae})
    way = passage(model, layer, (sae_in.site_out, sae_out.site_in), hold=tuple(hold), skip=skip)
    prompts = as_prompts(prompt)
    bos = chosen_bos(prepend_bos, pair, prompts)
    with torch.inference_mode(False), torch.no_grad():
        record = recorded(way, pair)
        trace = run(model, prompts, record=record, logits=False, prepend_bos=bos)
        keep = trace.mask
        shown = {site: flat(value)[keep] for site, value in trace.activations.items()}
        bos_token = getattr(model.tokenizer, "bos_token_id", None)
        special = trace.tokens[keep] == (-1 if bos_token is None else bos_token)
        found = between(way, pair, observed(way, pair, shown, special), how=how)
    ids = [row[here].tolist() for row, here in zip(trace.tokens, keep, strict=True)]
    results, start = [], 0
    for row in ids:
        chunk = slice(start, start + len(row))
        strings = tuple(model.token_strings(row))
        results.append(found.result(chunk, strings, tuple(row)))
        start += len(row)
    return results if are_many(prompt) else results[0]


def jacobian_tables(
    model: Model,
    layer: int,
    sae_in: SAE,
    sae_out: SAE,
    *,
    hold: Sequence[str] = (),
    skip: bool | None = None,
) -> JacobianTables:
    """The products of all latents with the weights, for many calls with the same SAEs."""
    for sae in (sae_in, sae_out):
        check_saes(model, {sae.site_out: sae})
    way = passage(model, layer, (sae_in.site_out, sae_out.site_in), hold=tuple(hold), skip=skip)
    with torch.inference_mode(False), torch.no_grad():
        pair = (sae_in, sae_out)
        point = way.mlp.W_in.new_zeros(1, way.mlp.W_in.shape[1])
        return make_tables(way, pair, promoted(way.linearize(point), pair))


def jacobian_of_weights(
    mlp: MLP,
    x: Float[Tensor, "pos d_in"],
    *,
    W_dec: Float[Tensor, "D_in d_in"],
    W_enc: Float[Tensor, "D_out d_out"],
    in_indices: Int64[Tensor, "pos k_in"],
    out_indices: Int64[Tensor, "pos k_out"],
    memory: int | None = None,
) -> Float[Tensor, "pos k_out k_in"]:
    """The same from weights and activations, differentiable in W_dec and W_enc.

    Args:
        mlp: the MLP.
        x: its input.
        W_dec: what latents before it write into that input.
        W_enc: what latents after it read of its output.
        in_indices: (pos, k_in) active latents before it.
        out_indices: (pos, k_out) active latents after it.
        memory: bytes that the products of W_dec and W_enc may take where tokens share many latents;
            None: what they need.
    """
    if W_dec.shape[1] != mlp.W_in.shape[1] or W_enc.shape[1] != mlp.W_out.shape[0]:
        raise ShapeError(
            f"An MLP from width {mlp.W_in.shape[1]} to {mlp.W_out.shape[0]} needs W_dec and W_enc "
            f"of these widths, got {tuple(W_dec.shape)} and {tuple(W_enc.shape)}."
        )
    linear = Linear(mlp.ways, mlp.W_out, mlp.W_out, mlp.slopes(x), None, None, False)
    sides = [
        Side(indices, torch.ones_like(indices).to(W), indices, lambda which, W=W: W[which])
        for indices, W in ((out_indices, W_enc), (in_indices, W_dec))
    ]
    return from_rows(linear, sides[0], sides[1], memory=memory)[0]

"""The two passes of an evaluation over the same blocks: what SAEs miss, and what that costs.

One mask serves every number: tokens that are real and not special. A predicted token counts when
both it and the token before it do. Sums are kept in float64, divided once at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.activations.rows import padded
from gossamer.corpus import TokenBlock
from gossamer.metrics import Unexplained, kl
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import Tap, remember
from gossamer.saes.crosscoder import Face, encode_read, sites_read
from gossamer.saes.sae import SparseCoder
from gossamer.saes.sets import earlier
from gossamer.splice import flat

ENCODE_ROWS = 1024
"""Tokens whose dense latents are in memory at once."""

KINDS = ("patched", "zero", "mean")
"""What is put at a site: the reconstruction, zero, or the site's mean."""

SUMS = ("cosine", "l2_ratio", "error_ratio", "reconstruction", "product", "l0", "l1")
"""Names of what is summed over tokens; reconstruction is Σ‖ŷ‖², product Σ⟨y,ŷ⟩."""


@dataclass(slots=True)
class Seen:
    """Sums over tokens for one SAE; `None` before the first."""

    unexplained: Unexplained | None
    """From which MSE and FVU come, and the site's mean."""

    firings: Int64[Tensor, " d_sae"]
    """Tokens on which each latent was active."""

    sums: dict[str, float]
    """Of SUMS."""

    by_position: Float[Tensor, "context 3"]
    """Tokens, squared error and active latents at each position."""

    @classmethod
    def nothing(cls, d_sae: int, context: int, device: torch.device) -> "Seen":
        """Over no token."""
        zeros = torch.zeros(d_sae, dtype=torch.long, device=device)
        table = torch.zeros(context, 3, dtype=torch.float64, device=device)
        return cls(None, zeros, {}, table)


@dataclass(slots=True)
class Losses:
    """Sums over predicted tokens for one SAE."""

    n: int
    """Predicted tokens."""

    nats: dict[str, float]
    """Σ −log p by kind of run, "clean" among them."""

    kl: dict[str, float]
    """Σ KL(clean ‖ run), nats."""

    agree: int
    """Places where clean and patched run have the same most likely token."""

    by_position: Float[Tensor, "context 4"]
    """Predicted tokens, clean and patched nats, and KL at each position."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks run at once."""

    tokens: TokenBatch
    """Ids and padding."""

    counted: Bool[Tensor, "blocks pos"]
    """Real tokens that are not special."""

    @classmethod
    def of(cls, blocks: Sequence[TokenBlock], device: torch.device) -> "Batch":
        """Padded on the right."""
        tokens, mask = padded(blocks)
        counted = mask.clone()
        for row, block in zip(counted, blocks, strict=True):
            row[: len(block.tokens)] &= ~block.special
        return cls(TokenBatch(tokens.to(device), mask.to(device)), counted.to(device))

    @property
    def predicted(self) -> Bool[Tensor, "blocks pos_less_1"]:
        """Where the next token is scored."""
        return self.counted[:, :-1] & self.counted[:, 1:]


@torch.no_grad()
def see(
    model: Model,
    saes: Mapping[str, SparseCoder],
    batch: Batch,
    seen: dict[str, Seen],
    *,
    context: int,
) -> None:
    """Add one batch of the model as it is to `seen`."""
    sites = {site for sae in saes.values() for site in (*sites_read(sae), sae.site_out)}
    found: dict[str, Tensor] = {}
    model.forward(batch.tokens, {s: remember(found, s) for s in sites}, to_the_end=False)
    positions = batch.tokens.positions[batch.counted]
    for name, sae in saes.items():
        y = flat(found[sae.site_out])[batch.counted]
        x = torch.cat([flat(found[site])[batch.counted] for site in sites_read(sae)], -1)
        for some in range(0, len(x), ENCODE_ROWS):
            piece = slice(some, some + ENCODE_ROWS)
            latents = encode_read(sae, x[piece])
            guess = sae.decode(latents, x[piece])
            for other in earlier(saes, name):
                before = flat(found[other.site_in])[batch.counted][piece]
                guess = guess + other.encode(before) @ other.weight_at(name)
            seen[name] = _added(
                seen.get(name), (latents, y[piece], guess), positions[piece], context
            )


def _added(
    before: Seen | None,
    what: tuple[Tensor, Tensor, Tensor],
    positions: Int64[Tensor, " rows"],
    context: int,
) -> Seen:
    latents, y, guess = (value.double() for value in what)
    if before is None:
        before = Seen.nothing(latents.shape[1], context, latents.device)
    here = Unexplained.of(y, guess)
    active = latents != 0
    size, length = guess.norm(dim=1), y.norm(dim=1)
    sums = {
        "cosine": ((y * guess).sum(1) / (size * length).clamp(min=1e-300)).sum(),
        "l2_ratio": (size / length).sum(),
        "error_ratio": ((y - guess).norm(dim=1) / length).sum(),
        "reconstruction": size.square().sum(),
        "product": (y * guess).sum(),
        "l0": active.sum(),
        "l1": latents.abs().sum(),
    }
    columns = (torch.ones_like(size), (y - guess).square().sum(1), active.sum(1).double())
    before.by_position.index_add_(0, positions, torch.stack(columns, dim=1))
    return Seen(
        here if before.unexplained is None else before.unexplained + here,
        before.firings + active.sum(0),
        {name: before.sums.get(name, 0.0) + value.item() for name, value in sums.items()},
        before.by_position,
    )


@torch.no_grad()
def score(
    model: Model,
    saes: Mapping[str, SparseCoder],
    batch: Batch,
    *,
    means: Mapping[str, Float[Tensor, " d_out"]],
    losses: Mapping[str, Losses],
) -> None:
    """Add one batch of clean, patched and ablated runs to `losses`, each SAE alone."""
    chosen = batch.predicted
    if not chosen.any():
        return
    targets = batch.tokens.tokens[:, 1:][chosen]
    positions = batch.tokens.positions[:, :-1][chosen]
    clean = _scored(model.forward(batch.tokens, {}), chosen)
    clean_nats = _nats(clean, targets)
    for name, sae in saes.items():
        into = losses[name]
        into.n += len(targets)
        into.nats["clean"] = into.nats.get("clean", 0.0) + clean_nats.sum().item()
        for kind in KINDS:
            taps = put(saes, name, kind, batch.counted, mean=means[name])
            if kind == "patched" and isinstance(sae, Face):
                taps = _put_clean(model, batch, sae)
            logits = _scored(model.forward(batch.tokens, taps), chosen)
            nats, divergence = _nats(logits, targets), kl(clean, logits).double()
            into.nats[kind] = into.nats.get(kind, 0.0) + nats.sum().item()
            into.kl[kind] = into.kl.get(kind, 0.0) + divergence.sum().item()
            if kind == "patched":
                into.agree += int((clean.argmax(1) == logits.argmax(1)).sum())
                columns = (torch.ones_like(nats), clean_nats, nats, divergence)
                into.by_position.index_add_(0, positions, torch.stack(columns, dim=1))


def put(
    saes: Mapping[str, SparseCoder],
    site: str,
    kind: str,
    where: Bool[Tensor, "blocks pos"],
    *,
    mean: Float[Tensor, " d_out"],
) -> dict[str, Tap]:
    """Taps that put the reconstruction, zero or the mean at one of the sites that SAEs write."""
    read: dict[str, Tensor] = {}
    sae, before = saes[site], earlier(saes, site)

    def write(value: Tensor) -> Tensor:
        width = flat(value)
        if kind == "patched":
            x = flat(read[sae.site_in])[where] if sae.site_in in read else width[where]
            pieces = [sae.decode(sae.encode(some), some) for some in x.split(ENCODE_ROWS)]
            new = torch.cat(pieces)
            for other in before:
                x = flat(read[other.site_in])[where]
                pieces = [
                    other.encode(some) @ other.weight_at(site) for some in x.split(ENCODE_ROWS)
                ]
                new = new + torch.cat(pieces)
            new = new.to(value.dtype)
        else:
            new = (mean if kind == "mean" else torch.zeros_like(mean)).to(value.dtype)
            new = new.expand(int(where.sum()), -1)
        changed = width.clone()
        changed[where] = new
        return changed.reshape(value.shape)

    taps: dict[str, Tap] = {site: write}
    if kind == "patched":
        sites = {each.site_in for each in (sae, *before)} - {site}
        taps |= {each: remember(read, each) for each in sites}
    return taps


def _put_clean(model: Model, batch: Batch, face: Face) -> dict[str, Tap]:
    """A tap that puts, at one site of a crosscoder, what it makes of all in a clean run."""
    found: dict[str, Tensor] = {}
    taps = {site: remember(found, site) for site in sites_read(face)}
    model.forward(batch.tokens, taps, to_the_end=False)
    x = torch.cat([flat(value)[batch.counted] for value in (found[s] for s in taps)], -1)
    pieces = [face.decode(encode_read(face, some)) for some in x.split(ENCODE_ROWS)]
    new = torch.cat(pieces)

    def write(value: Tensor) -> Tensor:
        changed = flat(value).clone()
        changed[batch.counted] = new.to(value.dtype)
        return changed.reshape(value.shape)

    return {face.site_out: write}


def _scored(
    logits: Float[Tensor, "blocks pos d_vocab"] | None, chosen: Bool[Tensor, "blocks pos_less_1"]
) -> Float[Tensor, "n d_vocab"]:
    assert logits is not None
    return logits[:, :-1][chosen]


def _nats(logits: Float[Tensor, "n d_vocab"], targets: Int64[Tensor, " n"]) -> Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(precise, targets, reduction="none").double()

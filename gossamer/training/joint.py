"""A pair of SAEs around an MLP, trained together so that few latents move few others.

    loss = E‖x − x̂‖² + E‖y − ŷ‖² + λ d_model · E Σ_ji φ(|J_ji|) / (k_out k_in)      [+ AuxK]

(Farnik et al. 2025, arXiv 2502.18147): x is what the MLP receives, y what it writes, J the Jacobian
between the active latents of the two SAEs at the true x. λ is that paper's, whose squared errors
are means over dimensions; here they are sums, hence d_model. J is in the units of training, so
sizes mean the same at every layer. It touches the rows of active latents alone, each once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.activations.harvest import fingerprint
from gossamer.errors import GossamerError
from gossamer.jacobian.passage import IN_KINDS, Passage, passage
from gossamer.jacobian.products import from_rows
from gossamer.jacobian.sides import Side
from gossamer.models.model import Model
from gossamer.training.architecture import warmed
from gossamer.training.config import TrainConfig
from gossamer.training.ranges import check_not_negative, check_positive, check_share
from gossamer.training.schedules import progress
from gossamer.training.step import Outcome
from gossamer.training.topk import TopKConfig
from gossamer.training.trainee import Trainee

Penalty = Literal["l1", "root", "log", "tanh", "capped", "normalized"]
Products = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JacobianConfig:
    """A Jacobian-SAE pair to be trained; both are TopK."""

    each: TrainConfig
    """What both are; its sites are left out."""

    layer: int
    """Block of the MLP."""

    weight: float
    """λ; 0 trains the same pair without the Jacobian. The authors' rule is k² / (2 d_model)."""

    warmup: float = 0.05
    """Share of the run over which λ rises."""

    penalty: Penalty = "l1"
    """φ; see `penalty`."""

    size: float = 0.01
    """δ, from which the penalties that bend do so, in the units of training."""

    share: float = 1.0
    """Share of a batch's tokens, drawn anew for each step, over which the last term is taken."""

    site: str | None = None
    """Where the first SAE stands; None: blocks.<layer>.mlp.hook_in."""

    multiply_in: Products = "float32"
    """Type of the products that give the Jacobian and its gradient; bfloat16 rounds what goes into
    them and comes out (to 0.4 %), all else stays in the type of training."""

    def __post_init__(self) -> None:
        check_not_negative("weight", self.weight)
        check_share("warmup", self.warmup)
        check_share("share", self.share)
        check_positive("size", self.size)
        if self.share == 0:
            raise GossamerError(
                "share=0 leaves no token for the Jacobian; write weight=0 for none."
            )
        if self.penalty not in get_args(Penalty):
            raise GossamerError(
                f"penalty is one of {', '.join(get_args(Penalty))}, got {self.penalty!r}."
            )
        if self.multiply_in not in get_args(Products):
            raise GossamerError(
                f"multiply_in is one of {', '.join(get_args(Products))}, got {self.multiply_in!r}."
            )
        if not isinstance(self.each.sae, TopKConfig):
            raise GossamerError(
                f"A Jacobian pair is of TopK SAEs, got {self.each.sae.name}; write TopKConfig(k=…)."
            )
        if self.each.site is not None or self.each.site_out is not None or self.each.skip:
            raise GossamerError(
                "The sites of a Jacobian pair follow from its layer; leave site, site_out and skip "
                "out of each=."
            )

    def members(self) -> list[TrainConfig]:
        """The two SAEs."""
        first = self.site or f"blocks.{self.layer}.{IN_KINDS[0]}"
        return [
            replace(self.each, site=first),
            replace(self.each, site=f"blocks.{self.layer}.hook_mlp_out"),
        ]


@dataclass(frozen=True, slots=True)
class Joint:
    """A pair's config and the MLP between."""

    config: JacobianConfig
    """What was asked."""

    passage: Passage
    """From the first SAE's site to the second's."""

    weights: str
    """What tells the model's weights from others."""

    @classmethod
    def of(cls, config: JacobianConfig, source: Any, model: Model | None) -> "Joint":
        """GossamerError where there is no model to take the MLP from."""
        model = getattr(source, "model", None) if model is None else model
        if not isinstance(model, Model):
            raise GossamerError(
                "A Jacobian pair needs the model whose MLP stands between; write train(..., "
                "model=model), or on the command line --model beside --from."
            )
        first, second = config.members()
        sites = (str(first.site), str(second.site))
        if sites[0].endswith("hook_resid_mid"):
            raise GossamerError(
                f"A pair is trained at blocks.{config.layer}.mlp.hook_in or ln2.hook_normalized, "
                f"got {sites[0]}."
            )
        return cls(config, passage(model, config.layer, sites), fingerprint(model))

    def about(self) -> dict[str, Any]:
        """What decides the result beside the SAEs' configs, as JSON values."""
        fields = {k: v for k, v in asdict(self.config).items() if k != "each"}
        return {"jacobian": {**fields, "weights": self.weights}}


def jacobian_term(
    joint: Joint,
    trainees: Sequence[Trainee],
    outcomes: Sequence[Outcome],
    batch: Mapping[str, Tensor],
    *,
    step: int,
) -> Float[Tensor, ""]:
    """λ d_model · E φ over one batch, differentiable in the first W_dec and the second W_enc."""
    config = joint.config
    weight = warmed(config.weight, config.warmup, progress(config.each, step))
    x = batch[joint.passage.site_in]
    tokens = drawn_tokens(config, len(x), step).to(x.device)
    dtype = trainees[0].W_dec.dtype
    with torch.no_grad():
        linear = joint.passage.linearize(x[tokens].to(joint.passage.mlp.W_in.device))
        linear = linear.to(trainees[0].W_dec.detach())
    into, out = (_active(found, tokens) for found in outcomes)
    W_dec, W_enc = trainees[0].W_dec, trainees[1].W_enc
    sides = [
        Side(which, which.to(dtype), which, lambda rows, W=W: W.index_select(0, rows))
        for (which, _), W in ((out, W_enc), (into, W_dec))
    ]
    products = torch.bfloat16 if config.multiply_in == "bfloat16" else None
    entries, _ = from_rows(linear, sides[0], sides[1], dtype=products)
    scale = (trainees[1].scale_out / trainees[0].scale_in).to(dtype)
    exists = out[1][..., None] & into[1][:, None]
    entries = torch.where(exists, entries * scale, 0.0)
    size = penalty(entries, config.penalty, config.size)
    return weight * x.shape[1] * size


def penalty(entries: Float[Tensor, "pos k_out k_in"], kind: str, size: float) -> Float[Tensor, ""]:
    """The mean over tokens and entries of φ(|J|), which for small entries is |J| itself.

    With δ = size: l1 |J|; root 2√δ(√(|J| + δ) − √δ); log δ log(1 + |J|/δ); tanh δ tanh(|J|/δ);
    capped min(|J|, δ). normalized does not depend on a token's scale: ‖J‖₁ / (‖J‖₂ √(k_out k_in)).
    """
    sizes = entries.abs()
    match kind:
        case "l1":
            return sizes.mean()
        case "root":
            return 2 * size**0.5 * ((sizes + size).sqrt() - size**0.5).mean()
        case "log":
            return size * (sizes / size).log1p().mean()
        case "tanh":
            return size * (sizes / size).tanh().mean()
        case "capped":
            return sizes.clamp(max=size).mean()
    flat = sizes.flatten(1)
    length = flat.square().sum(1).clamp(min=torch.finfo(flat.dtype).tiny).sqrt()
    return (flat.sum(1) / (length * flat.shape[1] ** 0.5)).mean()


def drawn_tokens(config: JacobianConfig, n_tokens: int, step: int) -> Int64[Tensor, " n"]:
    """Tokens of a batch, a function of seed and step alone: a resumed run draws the same."""
    if config.share == 1:
        return torch.arange(n_tokens)
    generator = torch.Generator().manual_seed(config.each.seed * 1_000_003 + step)
    n_drawn = max(1, round(config.share * n_tokens))
    return torch.randperm(n_tokens, generator=generator)[:n_drawn].sort().values


def _active(
    found: Outcome, tokens: Int64[Tensor, " n"]
) -> tuple[Int64[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """The k latents of each drawn token, and which of them are active."""
    assert found.pairs is not None  # TopK
    shape = (found.pairs.n_rows, -1)
    return found.pairs.indices.view(shape)[tokens], found.latents.view(shape)[tokens] > 0

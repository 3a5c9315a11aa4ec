"""Train pico-python's residual SAEs, all of them from one pass over the model's activations.

    python recipes/pico_python/train_saes.py --model DIRECTORY --out DIRECTORY --tokens 30000000

TopK SAEs (arXiv 2406.04093) that subtract b_dec, with unit decoder rows:

    pre = (x - b_dec) W_encᵀ + b_enc        values, indices = the k largest entries of each row, then relu
    x̂   = Σ_j values_j W_dec[indices_j] + b_dec
    loss = E‖x - x̂‖² / E‖x - mean‖² + α AuxK

AuxK asks the latents that have not fired for a while to reconstruct what the others missed, e = x - x̂ held
constant: ‖e - ê‖² / ‖e - mean e‖². A round is 512 rows of text run through the model, shuffled and cut into
64 batches; round r is a function of the seed and r alone, so a run that was stopped goes on exactly where the
last checkpoint stands. Position 0 holds `<|endoftext|>` in every row and is left out of training.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from train_model import CONTEXT, sample_rows, token_stream
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gossamer.corpus import split_stdlib

D_SAE = 2048
K = 32
ROWS_PER_ROUND = 512
BATCHES_PER_ROUND = 64
BATCH_TOKENS = ROWS_PER_ROUND * (CONTEXT - 1) // BATCHES_PER_ROUND
SITES = (*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post")
"""Residual stream before every block and after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What decides the result; saved beside the SAEs."""

    n_tokens: int = 30_000_000
    """Tokens that each SAE sees, rounded up to whole rounds."""

    learning_rate: float = 1e-3
    """Adam's, after the warm-up and before the last fifth of the run, in which it falls to 0."""

    n_warmup: int = 200
    """Steps of linear warm-up."""

    aux_weight: float = 1 / 32
    """α, the weight of AuxK."""

    k_aux: int = 64
    """Dead latents that take part for each token: d_model / 2."""

    dead_after_tokens: int = 500_000
    """A latent is dead, for AuxK, when it has not fired on this many tokens."""

    seed: int = 0
    """Of the initial weights and, with the number of the round, of the text."""

    @property
    def n_rounds(self) -> int:
        """Rounds needed for `n_tokens`."""
        return -(-self.n_tokens // (BATCH_TOKENS * BATCHES_PER_ROUND))

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up, constant, linear to 0 over the last 20 %."""
        n_steps = self.n_rounds * BATCHES_PER_ROUND
        return self.learning_rate * min((step + 1) / self.n_warmup, 1, (n_steps - step) / (0.2 * n_steps))


def largest(pre: Float[Tensor, "batch d_sae"]) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The K largest of each row and where they stand, in no order; 1.5 times as fast as `topk` of the whole row.

    Latents that are equal modulo d_sae / 8 form a group. The K largest lie in the K groups with the largest
    maxima, so only those 8 K entries are searched.
    """
    grouped = pre.view(len(pre), 8, -1)
    groups = grouped.amax(1).topk(K, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, 8, -1)).flatten(1)  # (batch, 8 k)
    values, places = candidates.topk(K, sorted=False)
    indices = groups.gather(1, places % K) + places // K * grouped.shape[2]
    return values, indices


class SparseCode(torch.autograd.Function):
    """(u, W_enc, b_enc, W_dec) → (Σ_j values_j W_dec[indices_j], values, indices), k latents for each row.

    Only the encoder's product is dense, in both directions: the gradient of a weight row is a bag sum over the
    tokens on which its latent fired.
    """

    @staticmethod
    def forward(ctx, u, W_enc, b_enc, W_dec):  # noqa: N803
        """Encode, select, decode."""
        values, indices = largest(torch.addmm(b_enc, u, W_enc.T))
        values = values.relu_()
        ctx.save_for_backward(u, W_enc, W_dec, values, indices)
        ctx.mark_non_differentiable(values, indices)
        return F.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values), values, indices

    @staticmethod
    def backward(ctx, gradient, *_):
        """Gradients of the four inputs; the selection is a constant."""
        u, W_enc, W_dec, values, indices = ctx.saved_tensors
        n_rows, n_latents = len(u), len(W_dec)
        columns, order = indices.sort(dim=1)
        values = values.gather(1, order)
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, n_rows * K + 1, K),
            columns.flatten(),
            torch.zeros(n_rows * K, dtype=u.dtype),
            size=(n_rows, n_latents),
            check_invariants=False,
        )
        towards = torch.sparse.sampled_addmm(pattern, gradient, W_dec.T).values().view(n_rows, K)
        towards = towards * (values > 0)
        latents = columns.flatten()
        by_latent = latents.argsort(stable=True)
        tokens = by_latent // K
        offsets = F.pad(latents.bincount(minlength=n_latents).cumsum(0), (1, 0))

        def bags(rows: Tensor, weights: Tensor) -> Tensor:
            weights = weights.flatten()[by_latent]
            return F.embedding_bag(
                tokens, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
            )

        gradient_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, latents, towards.flatten())
        gradient_u = F.embedding_bag(columns, W_enc, mode="sum", per_sample_weights=towards)
        return gradient_u, bags(u, towards), gradient_b_enc, bags(gradient, values)


class Trainee(nn.Module):
    """One SAE being trained, on activations divided by `scale`."""

    scale: Tensor
    tokens_since_fired: Tensor

    def __init__(self, sample: Float[Tensor, "batch d_model"], generator: torch.Generator) -> None:
        """Random unit decoder rows, the encoder a multiple of them, b_dec the mean of `sample`.

        The multiple is the one that reconstructs `sample` best: with k of d_sae = 16 d_model directions chosen
        for their large products, the transpose itself would come out several times too long.
        """
        super().__init__()
        mean = sample.mean(0)
        # After the division the centred activations have mean square 1 for each dimension.
        self.register_buffer("scale", (sample - mean).square().mean().sqrt())
        self.register_buffer("tokens_since_fired", torch.zeros(D_SAE, dtype=torch.long))
        rows = F.normalize(torch.randn(D_SAE, sample.shape[1], generator=generator), dim=1)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(D_SAE))
        self.b_dec = nn.Parameter(mean / self.scale)
        with torch.no_grad():
            u = sample / self.scale - self.b_dec
            decoded, _, _ = SparseCode.apply(u, self.W_enc, self.b_enc, self.W_dec)
            self.W_enc.mul_((u * decoded).sum() / decoded.square().sum())

    def loss(self, x: Float[Tensor, "batch d_model"], config: TrainingConfig) -> tuple[Tensor, Tensor]:
        """(the loss to descend, the part of it without AuxK); counts firings."""
        x = x / self.scale
        u = x - self.b_dec
        decoded, values, indices = SparseCode.apply(u, self.W_enc, self.b_enc, self.W_dec)
        error = u - decoded
        main = error.square().mean()
        dead = (self.tokens_since_fired >= config.dead_after_tokens).nonzero()[:, 0]
        self.tokens_since_fired += len(x)
        self.tokens_since_fired[indices[values > 0]] = 0
        if len(dead) == 0:
            return main, main.detach()
        return main + config.aux_weight * self.auxiliary(u.detach(), error.detach(), dead, config), main.detach()

    def auxiliary(
        self,
        u: Float[Tensor, "batch d_model"],
        error: Float[Tensor, "batch d_model"],
        dead: Int[Tensor, " n_dead"],
        config: TrainingConfig,
    ) -> Float[Tensor, ""]:
        """AuxK over the `dead` latents, as a share of the variance of `error`."""
        pre = (u @ self.W_enc[dead].T + self.b_enc[dead]).relu()
        if len(dead) > config.k_aux:
            kept = pre.topk(config.k_aux, sorted=False)
            pre = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
        missed = error - pre @ self.W_dec[dead]
        return missed.square().mean() / (error - error.mean(0)).square().mean()

    @torch.no_grad()
    def project_gradient_(self) -> None:
        """Remove from the decoder's gradient what would only change the norms of its rows."""
        gradient = self.W_dec.grad
        gradient -= (gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def normalize_(self) -> None:
        """Decoder rows back to norm 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The weights for activations as the model has them: latents and biases grow by `scale`."""
        return {
            "W_enc": self.W_enc.detach().clone(),
            "b_enc": self.b_enc * self.scale,
            "W_dec": self.W_dec.detach().clone(),
            "b_dec": self.b_dec * self.scale,
        }


@contextmanager
def recording(model: GPT2LMHeadModel) -> Iterator[dict[str, Tensor]]:
    """Within the context every run of `model` leaves its residual stream here, by site."""
    found: dict[str, Tensor] = {}
    blocks = model.transformer.h

    def keep(site: str, value: Tensor) -> None:
        found[site] = value.detach().float()

    handles = [
        block.register_forward_pre_hook(lambda _, arguments, site=site: keep(site, arguments[0]))
        for site, block in zip(SITES, [*blocks, model.transformer.ln_f], strict=True)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def residual_streams(
    model: GPT2LMHeadModel, rows: Int[Tensor, "batch pos"], group: int = 16
) -> list[Float[Tensor, "tokens d_model"]]:
    """For each site, the activations of `rows` without position 0, rows one after the other."""
    n_tokens = rows.shape[0] * (rows.shape[1] - 1)
    width = model.config.n_embd
    streams = [torch.empty(n_tokens, width) for _ in SITES]
    with recording(model) as found:
        at = 0
        for some in rows.split(group):
            model.transformer(some, use_cache=False)
            count = len(some) * (some.shape[1] - 1)
            for site, stream in zip(SITES, streams, strict=True):
                stream[at : at + count] = found[site][:, 1:].reshape(count, width)
            at += count
    return streams


def round_rows(stream: Int[Tensor, " tokens"], number: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """The rows of a round, and the generator that goes on to shuffle it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return sample_rows(stream, ROWS_PER_ROUND, generator)[:, :-1], generator


def initial_trainees(
    model: GPT2LMHeadModel, stream: Int[Tensor, " tokens"], seed: int
) -> list[Trainee]:
    """One SAE per site, its scale and b_dec taken from one round of activations."""
    # Round -1 is never trained on, so its text is not seen twice.
    rows, _ = round_rows(stream, -1, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    return [Trainee(sample, generator) for sample in residual_streams(model, rows)]


def train_step(trainee: Trainee, optimizer: torch.optim.Optimizer, x: Tensor, config: TrainingConfig) -> Tensor:
    """One step of one SAE; returns its share of unexplained variance on the batch."""
    loss, unexplained = trainee.loss(x, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trainee.project_gradient_()
    optimizer.step()
    trainee.normalize_()
    return unexplained


def save_checkpoint(
    path: Path, finished_rounds: int, trainees: list[Trainee], optimizers: list[torch.optim.Optimizer]
) -> None:
    """All that the next round needs, moved into place when it is whole."""
    state = {
        "finished_rounds": finished_rounds,
        "trainees": [t.state_dict() for t in trainees],
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path, trainees: list[Trainee], optimizers: list[torch.optim.Optimizer]) -> int:
    """Put the state back; returns the number of finished rounds, 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for trainee, saved in zip(trainees, state["trainees"], strict=True):
        trainee.load_state_dict(saved)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["finished_rounds"]


def train_saes(model: GPT2LMHeadModel, stream: Tensor, config: TrainingConfig, out: Path) -> list[Trainee]:
    """Train all SAEs, saving after every tenth round into `out`."""
    trainees = initial_trainees(model, stream, config.seed)
    optimizers = [torch.optim.Adam(t.parameters(), fused=True) for t in trainees]
    first = load_checkpoint(out / "checkpoint.pt", trainees, optimizers)
    running = torch.zeros(len(SITES))
    model_seconds, started = 0.0, time.perf_counter()
    for number in range(first, config.n_rounds):
        before = time.perf_counter()
        rows, generator = round_rows(stream, number, config.seed)
        streams = residual_streams(model, rows)
        model_seconds += time.perf_counter() - before
        order = torch.randperm(BATCHES_PER_ROUND * BATCH_TOKENS, generator=generator)
        for index, batch in enumerate(order.split(BATCH_TOKENS)):
            rate = config.rate(number * BATCHES_PER_ROUND + index)
            for place, (trainee, optimizer) in enumerate(zip(trainees, optimizers, strict=True)):
                optimizer.param_groups[0]["lr"] = rate
                running[place] = train_step(trainee, optimizer, streams[place][batch], config)
        if (number + 1) % 10 == 0 or number + 1 == config.n_rounds:
            save_checkpoint(out / "checkpoint.pt", number + 1, trainees, optimizers)
            dead = [(t.tokens_since_fired >= config.dead_after_tokens).sum().item() for t in trainees]
            speed = (number + 1 - first) * BATCHES_PER_ROUND * BATCH_TOKENS / (time.perf_counter() - started)
            share = model_seconds / (time.perf_counter() - started)
            click.echo(
                f"round {number + 1}/{config.n_rounds} FVU {' '.join(f'{v:.4f}' for v in running)} dead {dead} "
                f"{speed:,.0f} tokens/s, {share:.0%} of the time in the model"
            )
    return trainees

"""Train pico-python's residual SAEs, all of them from one pass over the model's activations.

    python recipes/pico_python/train_saes.py --model DIRECTORY --out DIRECTORY --tokens 30000000

TopK SAEs (arXiv 2406.04093) that subtract b_dec, with unit decoder rows:

    pre = (x - b_dec) W_encᵀ + b_enc
    values, indices = the k largest entries of each row of pre, then relu
    x̂ = Σ_j values_j W_dec[indices_j] + b_dec
    loss = E‖x - x̂‖² / E‖x - mean‖² + α AuxK

AuxK asks the latents that have not fired for a while to reconstruct what the others missed,
e = x - x̂ held constant: ‖e - ê‖² / ‖e - mean e‖². A round is 512 rows of text run through the
model, shuffled and cut into 64 batches; round r is a function of the seed and r alone, so a run
that was stopped goes on exactly where the last checkpoint stands. Every position is trained on,
the leading `<|endoftext|>` too, since a splice replaces it like any other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sparse_code import SparseCode
from torch import Tensor, nn
from train_model import CONTEXT, sample_rows, token_stream
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gossamer.corpus import split_stdlib
from gossamer.saes import SAE, TopK

D_SAE = 2048
K = 32
ROWS_PER_ROUND = 512
BATCHES_PER_ROUND = 64
BATCH_TOKENS = ROWS_PER_ROUND * CONTEXT // BATCHES_PER_ROUND
SITES = (*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post")
"""Residual stream before every block and after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What decides the result; saved beside the SAEs."""

    n_tokens: int = 30_000_000
    """Tokens that each SAE sees, rounded up to whole rounds."""

    learning_rate: float = 3e-3
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
        return self.learning_rate * min(
            (step + 1) / self.n_warmup, 1, (n_steps - step) / (0.2 * n_steps)
        )


class Trainee(nn.Module):
    """One SAE being trained, on activations divided by `scale`."""

    scale: Tensor
    tokens_since_fired: Tensor

    def __init__(self, sample: Float[Tensor, "batch d_model"], generator: torch.Generator) -> None:
        """Random unit decoder rows, the encoder a multiple of them, b_dec the mean of `sample`.

        The multiple is the one that reconstructs `sample` best: with k of d_sae = 16 d_model
        directions chosen for their large products, the transpose itself would come out several
        times too long.
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
            decoded, _, _ = SparseCode.apply(u, self.W_enc, self.b_enc, self.W_dec, K)
            self.W_enc.mul_((u * decoded).sum() / decoded.square().sum())

    def loss(
        self, x: Float[Tensor, "batch d_model"], config: TrainingConfig
    ) -> tuple[Tensor, Tensor]:
        """(the loss to descend, the part of it without AuxK); counts firings."""
        x = x / self.scale
        u = x - self.b_dec
        decoded, values, indices = SparseCode.apply(u, self.W_enc, self.b_enc, self.W_dec, K)
        error = u - decoded
        main = error.square().mean()
        dead = self.is_dead(config).nonzero()[:, 0]
        self.tokens_since_fired += len(x)
        self.tokens_since_fired[indices[values > 0]] = 0
        if len(dead) == 0:
            return main, main.detach()
        return main + config.aux_weight * self.auxiliary(
            u.detach(), error.detach(), dead, config
        ), main.detach()

    def is_dead(self, config: TrainingConfig) -> Bool[Tensor, " d_sae"]:
        """Which latents have not fired for long."""
        return self.tokens_since_fired >= config.dead_after_tokens

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
        assert gradient is not None
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

    def keep_input(site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: found.update({site: arguments[0].detach().float()})

    handles = [
        block.register_forward_pre_hook(keep_input(site))
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
    """For each site, the activations of `rows`, one row after the other."""
    n_tokens = rows.numel()
    width = model.config.n_embd
    streams = [torch.empty(n_tokens, width) for _ in SITES]
    with recording(model) as found:
        at = 0
        for some in rows.split(group):
            model.transformer(some, use_cache=False)
            count = some.numel()
            for site, stream in zip(SITES, streams, strict=True):
                stream[at : at + count] = found[site].reshape(count, width)
            at += count
    return streams


def round_rows(
    stream: Int[Tensor, " tokens"], number: int, seed: int
) -> tuple[Tensor, torch.Generator]:
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


def train_step(
    trainee: Trainee, optimizer: torch.optim.Optimizer, x: Tensor, config: TrainingConfig
) -> Tensor:
    """One step of one SAE; returns its share of unexplained variance on the batch."""
    loss, unexplained = trainee.loss(x, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trainee.project_gradient_()
    optimizer.step()
    trainee.normalize_()
    return unexplained


def save_checkpoint(
    path: Path,
    finished_rounds: int,
    trainees: list[Trainee],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """All that the next round needs, moved into place when it is whole."""
    state = {
        "finished_rounds": finished_rounds,
        "trainees": [t.state_dict() for t in trainees],
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(
    path: Path, trainees: list[Trainee], optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Put the state back; returns the number of finished rounds, 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for trainee, saved in zip(trainees, state["trainees"], strict=True):
        trainee.load_state_dict(saved)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["finished_rounds"]


def train_saes(
    model: GPT2LMHeadModel, stream: Tensor, config: TrainingConfig, out: Path
) -> list[Trainee]:
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
            seconds = time.perf_counter() - started
            speed = (number + 1 - first) * BATCHES_PER_ROUND * BATCH_TOKENS / seconds
            dead = [int(t.is_dead(config).sum()) for t in trainees]
            click.echo(
                f"round {number + 1}/{config.n_rounds}, unexplained "
                f"{' '.join(f'{v:.4f}' for v in running)}, dead {' '.join(map(str, dead))}, "
                f"{speed:,.0f} tokens/s, {model_seconds / seconds:.0%} of the time in the model"
            )
    return trainees


def as_sae(trainee: Trainee, site: str, config: TrainingConfig) -> SAE:
    """What is shipped: folded weights in float16."""
    weights = {name: tensor.half() for name, tensor in trainee.folded().items()}
    return SAE(
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        selection=TopK(K),
        site_in=site,
        subtract_b_dec=True,
        prepend_bos=True,
        model_name="pico-python",
        metadata={"training": asdict(config)},
    )


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--tokens", default=30_000_000, show_default=True, help="Tokens each SAE sees.")
@click.option("--learning-rate", default=3e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(**options: Any) -> None:
    """Train, printing the loss, and write one directory per site in Gossamer's own format."""
    out = options["out"]
    out.mkdir(parents=True, exist_ok=True)
    config = TrainingConfig(
        n_tokens=options["tokens"], learning_rate=options["learning_rate"], seed=options["seed"]
    )
    # The weights as they are shipped, rounded to float16, computed with in float32.
    model = GPT2LMHeadModel.from_pretrained(options["model"], dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options["model"])
    stream = token_stream(split_stdlib()[0], tokenizer)
    for trainee, site in zip(train_saes(model, stream, config, out), SITES, strict=True):
        as_sae(trainee, site, config).save(out / site)


if __name__ == "__main__":
    main()

"""Measure the model and its SAEs on held-out files, as they are shipped.

    python recipes/pico_python/evaluate.py --model DIRECTORY --saes DIRECTORY --out FILE.json

The model: bits per byte of all held-out files, beside `xz -9` of the same bytes in one piece. Each
SAE, alone in the model with its error dropped, at every position of some held-out rows (each
`<|endoftext|>` and 511 consecutive tokens, spread evenly over the held-out text):

    CE recovered = (CE ablated - CE patched) / (CE ablated - CE clean)

for zero ablation and for mean ablation (the site's mean over the same rows at every position).
Losses and KL are means over the predicted tokens of all rows; FVU, L0 and firings are over all
positions.
"""

import json
import lzma
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from train_model import CONTEXT, bits_per_byte, token_stream

import gossamer
from gossamer.corpus import SourceFile, split_stdlib
from gossamer.metrics import Unexplained, ce_recovered, dead_fraction, kl, l0
from gossamer.models.model import Model
from gossamer.saes import SAE

GROUP = 16
"""Rows that run at once."""


@dataclass(frozen=True, slots=True)
class SAEReport:
    """What one SAE keeps and loses in its model; CE and KL in nats for each predicted token."""

    l0: float
    fvu: float
    ce_clean: float
    ce_patched: float
    ce_zero_ablated: float
    ce_mean_ablated: float
    recovered_of_zero_ablation: float
    recovered_of_mean_ablation: float
    kl: float
    dead_fraction: float
    """Share of latents without a firing on the rows of this evaluation."""


@dataclass(slots=True)
class _Sums:
    """What is added up over the groups of rows, for one site."""

    mean: Float[Tensor, " d_model"]
    """What mean ablation puts there."""

    nats: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0
    active: float = 0.0
    firings: Tensor | None = None
    unexplained: Unexplained | None = None

    def add_nats(self, kind: str, logits: Tensor, rows: Tensor) -> None:
        """The losses of the predicted tokens of `rows`."""
        self.nats[kind] = self.nats.get(kind, 0.0) + nats(logits, rows).sum().item()


def spread_rows(stream: Int[Tensor, " tokens"], n_rows: int) -> Int[Tensor, "rows pos"]:
    """`n_rows` rows of `<|endoftext|>` and CONTEXT - 1 tokens, spread evenly, without overlap."""
    n_possible = len(stream) // (CONTEXT - 1)
    if n_rows > n_possible:
        raise click.UsageError(f"The text gives {n_possible} rows, {n_rows} were asked for.")
    chosen = torch.arange(n_rows) * n_possible // n_rows
    places = chosen[:, None] * (CONTEXT - 1) + torch.arange(CONTEXT - 1)
    return F.pad(stream[places].long(), (1, 0), value=0)


def nats(
    logits: Float[Tensor, "batch pos d_vocab"], rows: Int[Tensor, "batch pos"]
) -> Float[Tensor, " predicted"]:
    """Loss of every token but the first of each row."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).double(), rows[:, 1:].flatten(), reduction="none"
    )


def site_means(
    model: Model, rows: Int[Tensor, "rows pos"], sites: list[str]
) -> dict[str, Float[Tensor, " d_model"]]:
    """Mean activation of each site over all positions of all rows."""
    sums = {site: torch.zeros(model.d_model, dtype=torch.float64) for site in sites}
    for group in rows.split(GROUP):
        trace = gossamer.run(model, group.tolist(), record=sites, logits=False)
        for site in sites:
            sums[site] += trace.activations[site].double().sum((0, 1))
    return {site: (total / rows.numel()).float() for site, total in sums.items()}


def evaluate_saes(
    model: Model, saes: dict[str, SAE], rows: Int[Tensor, "rows pos"]
) -> Iterator[tuple[str, SAEReport]]:
    """(site, report) of each SAE."""
    means = site_means(model, rows, list(saes))
    for site, sae in saes.items():
        sums = _Sums(means[site])
        for group in rows.split(GROUP):
            _add_group(sums, model, sae, group)
        yield site, _report(sums, rows)


def _add_group(sums: _Sums, model: Model, sae: SAE, group: Int[Tensor, "batch pos"]) -> None:
    """Run a group of rows clean, patched and ablated."""
    site, prompts = sae.site_out, group.tolist()
    clean = gossamer.run(model, prompts, record=[site])
    patched = gossamer.run(model, prompts, sae, error="dropped")
    assert clean.logits is not None and patched.logits is not None
    sums.add_nats("clean", clean.logits, group)
    sums.add_nats("patched", patched.logits, group)
    edits = {"zero": gossamer.Ablate(site), "mean": gossamer.Set(site, sums.mean)}
    for kind, edit in edits.items():
        ablated = gossamer.run(model, prompts, edits=[edit])
        assert ablated.logits is not None
        sums.add_nats(kind, ablated.logits, group)
    # The last position of a row predicts a token that is not in it.
    sums.kl += kl(clean.logits[:, :-1], patched.logits[:, :-1]).double().sum().item()
    latents = patched.latents[site]
    sums.active += l0(latents) * group.numel()
    firings = (latents != 0).sum((0, 1))
    sums.firings = firings if sums.firings is None else sums.firings + firings
    part = Unexplained.of(clean.activations[site], patched.reconstructions[site])
    sums.unexplained = part if sums.unexplained is None else sums.unexplained + part


def _report(sums: _Sums, rows: Int[Tensor, "rows pos"]) -> SAEReport:
    assert sums.firings is not None and sums.unexplained is not None
    n_predicted = rows.shape[0] * (rows.shape[1] - 1)
    ce = {kind: total / n_predicted for kind, total in sums.nats.items()}
    return SAEReport(
        l0=sums.active / rows.numel(),
        fvu=sums.unexplained.fvu,
        ce_clean=ce["clean"],
        ce_patched=ce["patched"],
        ce_zero_ablated=ce["zero"],
        ce_mean_ablated=ce["mean"],
        recovered_of_zero_ablation=ce_recovered(ce["clean"], ce["patched"], ce["zero"]),
        recovered_of_mean_ablation=ce_recovered(ce["clean"], ce["patched"], ce["mean"]),
        kl=sums.kl / n_predicted,
        dead_fraction=dead_fraction(sums.firings),
    )


def evaluate_model(model: Model, held_out: list[SourceFile]) -> dict[str, Any]:
    """Bits per byte of the model, and of xz on all files in one piece."""
    contents = "".join(file.text for file in held_out).encode()
    return {
        "held_out_files": len(held_out),
        "held_out_bytes": len(contents),
        "bits_per_byte": bits_per_byte(model.language_model, model.tokenizer, held_out),
        "bits_per_byte_xz": 8 * len(lzma.compress(contents, preset=9)) / len(contents),
    }


@click.command()
@click.option("--model", "model_path", type=click.Path(exists=True), required=True)
@click.option("--saes", "saes_path", type=click.Path(exists=True), required=True)
@click.option("--rows", "n_rows", default=256, show_default=True, help="Held-out rows of 512.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(model_path: str, saes_path: str, n_rows: int, out: Path) -> None:
    """Print the numbers, and write them as JSON."""
    model = gossamer.load_model(model_path)
    saes = {s: sae for s, sae in gossamer.load_saes(saes_path).items() if isinstance(sae, SAE)}
    _, held_out = split_stdlib()
    with torch.no_grad():
        of_model = evaluate_model(model, held_out)
        click.echo(
            f"model: {of_model['bits_per_byte']:.4f} bits/byte, xz -9 "
            f"{of_model['bits_per_byte_xz']:.4f}, over {of_model['held_out_bytes']:,} bytes of "
            f"{len(held_out)} held-out files"
        )
        rows = spread_rows(token_stream(held_out, model.tokenizer), n_rows)
        reports: dict[str, dict[str, float]] = {}
        for site, report in evaluate_saes(model, saes, rows):
            reports[site] = asdict(report)
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in reports[site].items())
            click.echo(f"{site}: {numbers}")
    click.echo(f"SAEs: {rows.numel():,} tokens in {n_rows} held-out rows")
    result = {"model": of_model, "sae_tokens": rows.numel(), "saes": reports}
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

"""The model card of pico-python, written from the numbers in its manifest."""

from pathlib import Path
from typing import Any

from train_saes import D_SAE, K

from gossamer.corpus import HELD_OUT_ONE_IN

CARD = """\
# pico-python

A language model of Python source code and sparse autoencoders (SAEs) for it, small enough to travel
inside the package: SAEs that read its residual stream, transcoders that stand for its MLPs, and a
Jacobian-SAE pair around one of them. It is for trying, teaching and testing: it writes plausible
Python and knows nothing else.

    model = gossamer.load_model("pico-python")
    saes = gossamer.load_saes("pico-python")      # the same as "pico-python/resid"
    transcoders = gossamer.load_saes("pico-python/transcoders")
    pair = gossamer.load_saes("pico-python/jacobian")

## The model

GPT-2's architecture: 4 blocks of 4 heads, d_model 128, d_mlp 512, context 512, tied embeddings,
1,383,168 parameters in float16. Its tokenizer is a byte-level BPE of 4096 tokens, of which
`<|endoftext|>` is number 0. Every row of training text began with it, so every prompt should
(`gossamer` puts it there).

| on {held_out_files} held-out files, {held_out_bytes:,} bytes | bits per byte |
|---|---|
| pico-python | {bits_per_byte:.3f} |
| `xz -9` of the same files in one piece | {bits_per_byte_xz:.3f} |

The model sees at most 512 tokens before the one it predicts (at least 383 once a file is that
long), `xz` all that came before; the model has learnt from the training files, `xz` has not.

## The SAEs

TopK, {k} of {d_sae} latents, float16. The residual SAEs and the pair have decoder rows of norm 1
and subtract b_dec from their input; the transcoders have a linear skip connection. The numbers are
those of

    gossamer evaluate --saes pico-python/resid --context 512 --tokens 131072
    gossamer evaluate --saes pico-python/transcoders --context 512 --tokens 131072
    gossamer evaluate --saes pico-python/jacobian --context 512 --tokens 131072

on {sae_tokens:,} held-out tokens: each alone in the model, its error dropped, everywhere but at
`<|endoftext|>`. CE is the mean next-token loss in nats, {ce_clean:.4f} for the model as it is.
`docs/metrics.md` defines the columns.

{table}

Dead: share of latents that never fire, on those held-out tokens, and on {label_tokens:,} tokens of
training text.

## The Jacobian pair

SAEs at `blocks.0.mlp.hook_in` and `blocks.0.hook_mlp_out`, trained together for few large
derivatives between their latents (λ = {weight:g}, `log` with δ = 0.02; `docs/math.md`), beside the
same pair with λ = 0.
The numbers are those of `gossamer jacobian --layer 0 --corpus stdlib --tokens 131072`: entries a
token, of {entries}, whose size is above a threshold in comparable units.

{pair_table}

## Labels

`labels.json.gz` beside each SAE, as `gossamer dashboard --labels` derives them: for every latent
its top tokens (largest Σ activation² over {label_tokens:,} tokens of training text) and the text
before its strongest activation there, ending with the token on which it fires, indentation left
out. They say what a latent fires on, not what it does; a latent that is dead there has none.

## Data

The `.py` files of the standard library of Python {python}, each content once, without
site-packages: {n_training} files to train on, {held_out_files} held out. A file is held out when
the SHA-256 of its path, the first 8 hexadecimal digits, is divisible by {one_in}, and no training
file has the same content. `manifest.json` has the hashes of the training files (16 digits of the
SHA-256 of each), paths and hashes of those held out, the seeds and settings, the versions, and the
SHA-256 of every file here; of the text itself only the labels' contexts are in this folder. The
library is tidy, English and old-fashioned, and one file often resembles another, so these numbers
say little about other code.

## How it was made

`{command}`, which runs `recipes/pico_python/make_assets.py`: seeds {seeds}, {model_steps} steps of
16 rows of 512 tokens for the model (Muon and AdamW); then `gossamer.train` (Adam, its rate falling
over the last half of the run; AuxK against dead latents): {runs}.
Another machine gives the same up to rounding, which grows in training.
"""


COLUMNS = (
    ("site", ""),
    ("L0", ".2f"),
    ("FVU", ".4f"),
    ("CE patched", ".4f"),
    ("CE increase", ".4f"),
    ("recovered of zero", ".4f"),
    ("recovered of mean", ".4f"),
    ("KL", ".4f"),
    ("dead, held out", ".2%"),
    ("dead, training", ".2%"),
)
"""Headings of the table of SAEs, and how each number is printed."""

NAMES = ("l0", "fvu", "ce_patched", "ce_increase", "ce_recovered_zero", "ce_recovered_mean", "kl",
         "dead_fraction")  # fmt: skip
"""What stands under them, but for the last."""


def write_card(path: Path, manifest: dict[str, Any]) -> None:
    """Write the card; the same manifest gives the same bytes."""
    evaluation = manifest["evaluation"]
    dead = manifest["labels"]["dead_fraction"]
    found = [
        (f"{name}/{site}", numbers, dead[name][site])
        for name, numbers_of in evaluation["saes"].items()
        for site, numbers in _ordered(numbers_of)
    ]
    table = [
        _line([name for name, _ in COLUMNS]),
        _line(["---"] * len(COLUMNS)),
        *(_line(_cells(*row)) for row in found),
    ]
    path.write_text(
        CARD.format(
            **evaluation["model"],
            k=K,
            d_sae=D_SAE,
            sae_tokens=evaluation["n_tokens"],
            ce_clean=found[0][1]["ce_clean"],
            table="\n".join(table),
            label_tokens=manifest["labels"]["tokens"],
            python=manifest["python"],
            n_training=len(manifest["training"]),
            one_in=HELD_OUT_ONE_IN,
            command=manifest["command"],
            seeds=", ".join(f"{what} {seed}" for what, seed in manifest["seeds"].items()),
            model_steps=manifest["model_steps"],
            runs="; ".join(
                f"{name} {manifest['tokens'][name]:,} tokens each at {rate:g}"
                for name, rate in manifest["rates"].items()
            ),
            weight=manifest["jacobian_weight"],
            entries=f"{K} × {K}",
            pair_table="\n".join(_pair_table(evaluation["pairs"])),
        ),
        encoding="utf-8",
    )


def _pair_table(pairs: dict[str, Any]) -> list[str]:
    """The pair beside the one that was trained without its Jacobian."""
    thresholds = [each["threshold"] for each in pairs["plain"]["density"]]
    heads = ["pair", *(f"> {t:g}" for t in thresholds), "mean size", "CE recovered in", "out"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name in ("jacobian", "plain"):
        found = pairs[name]
        cards = {site.split(".")[-1]: card for site, card in found["saes"].items()}
        recovered = [f"{cards[c]['ce_recovered_zero']:.4f}" for c in ("hook_in", "hook_mlp_out")]
        entries = [f"{each['entries']:.1f}" for each in found["density"]]
        title = "λ = 0" if name == "plain" else "shipped"
        lines.append(_line([title, *entries, f"{found['mean_size']:.2e}", *recovered]))
    return lines


def _ordered(reports: dict[str, Any]) -> list[tuple[str, Any]]:
    """In forward order: the one `hook_resid_post` last."""
    return sorted(reports.items(), key=lambda item: (item[0].endswith("post"), item[0]))


def _cells(site: str, numbers: dict[str, float], dead: float) -> list[str]:
    values = [numbers[name] for name in NAMES] + [dead]
    formats = [spec for _, spec in COLUMNS[1:]]
    return [f"`{site}`", *(format(n, spec) for n, spec in zip(values, formats, strict=True))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""Latent → latent edges against the dense Jacobian they replace, at GPT-2-small shape.

    python benchmarks/edges.py                 # 9 and 64 tokens, three ways, side by side
    python benchmarks/edges.py --tokens 512 --ways edges

Random weights, three blocks between two ReLU SAEs of 24,576 latents, biases set so that about 11
latents are active a position at the source and 20 at the target. The ways:

    dense   torch.func.jacrev of encode ∘ blocks ∘ decode by the dense latents, its active part kept
            (all targets at once up to 16 tokens, 64 at a time beyond)
    plain   encoder rows as cotangents of the whole prompt, 32 targets at a time, decoder rows
            contracted by position
    edges   gossamer.edges

Each measurement is a process of its own; the ways take turns. Memory is the peak of resident memory
during the call above what was resident before it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

SOURCE, TARGET = "blocks.0.hook_resid_pre", "blocks.3.hook_resid_pre"
D_SAE, ACTIVE = 24_576, {SOURCE: 11, TARGET: 20}


def setting(n: int) -> tuple[Any, list[Any], list[int]]:
    """Model, SAEs and prompt; the same in every process."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import gossamer
    from gossamer.saes import SAE, ReLU

    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
    model = gossamer.load_model(GPT2LMHeadModel(config))
    ids = torch.randint(0, 1000, (n,)).tolist()
    seen = gossamer.run(model, [ids], record=list(ACTIVE), logits=False).activations
    saes = []
    for site, active in ACTIVE.items():
        W = torch.nn.functional.normalize(torch.randn(D_SAE, 768), dim=-1)
        pre = seen[site][0].detach() @ W.T
        bias = -pre.flatten().topk(active * n).values[-1]
        zeros = torch.zeros(768)
        b_enc, selection = bias.repeat(D_SAE), ReLU()
        saes.append(
            SAE(W_enc=W, b_enc=b_enc, W_dec=W, b_dec=zeros, selection=selection, site_in=site)
        )
    return model, saes, ids


def by_edges(model: Any, saes: list[Any], ids: list[int]) -> Tensor:
    """What this package does."""
    import gossamer

    source, target = gossamer.Latents(SOURCE), gossamer.Latents(TARGET)
    found = gossamer.edges(model, saes, ids, source=source, target=target)
    assert isinstance(found, gossamer.Edges)
    return found.gradients


def blocks_of(model: Any, n: int) -> Callable[[Tensor], Tensor]:
    """Three blocks of the Hugging Face model on (1, n, d_model)."""
    language_model = model.language_model
    language_model.config._attn_implementation = "eager"
    language_model.requires_grad_(False)
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]

    def run(x: Tensor) -> Tensor:
        for block in language_model.transformer.h[:3]:
            out = block(x, attention_mask=mask)
            x = out[0] if isinstance(out, tuple) else out
        return x

    return run


def clean_values(model: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    import gossamer

    with torch.no_grad():
        seen = gossamer.run(model, [ids], record=list(ACTIVE), logits=False).activations
    return seen[SOURCE][0], seen[TARGET][0]


def by_dense(model: Any, saes: list[Any], ids: list[int]) -> Tensor:
    """The notebook's way."""
    (x_a, x_b), blocks = clean_values(model, ids), blocks_of(model, len(ids))
    latents = saes[0].encode(x_a)
    error = x_a - saes[0].decode(latents)
    active = saes[1].encode(x_b) > 0

    def targets(f: Tensor) -> Tensor:
        return saes[1].encode(blocks((saes[0].decode(f) + error)[None])[0])[active]

    chunk = None if len(ids) <= 16 else 64
    return torch.func.jacrev(targets, chunk_size=chunk)(latents)[:, latents > 0]


def by_plain(model: Any, saes: list[Any], ids: list[int]) -> Tensor:
    """Injected cotangents, nothing else."""
    (x_a, x_b), blocks = clean_values(model, ids), blocks_of(model, len(ids))
    f, g = saes[0].encode(x_a), saes[1].encode(x_b)
    leaf = x_a.clone().requires_grad_()
    out = blocks(leaf[None])[0]
    positions, latents = g.nonzero(as_tuple=True)
    rows = []
    for start in range(0, len(positions), 32):
        here = slice(start, start + 32)
        cotangents = torch.zeros(len(positions[here]), *out.shape)
        cotangents[torch.arange(len(cotangents)), positions[here]] = saes[1].W_enc[latents[here]]
        (back,) = torch.autograd.grad(
            out, leaf, cotangents, is_grads_batched=True, retain_graph=True
        )
        parts = [back[:, p] @ saes[0].W_dec[f[p].nonzero()[:, 0]].T for p in range(len(ids))]
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows)


WAYS = {"dense": by_dense, "plain": by_plain, "edges": by_edges}


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measured(way: str, n: int, repeats: int, file: str) -> dict[str, float]:
    """Seconds (median) and peak bytes of one way, in this process; the result goes to `file`."""
    model, saes, ids = setting(n)
    compute = WAYS[way]
    compute(model, saes, ids[: min(n, 3)])  # what is loaded once
    peak, done, before = [0], threading.Event(), resident()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, result = [], torch.empty(0)
    for _ in range(repeats):
        start = time.perf_counter()
        result = compute(model, saes, ids)
        seconds.append(time.perf_counter() - start)
    done.set()
    watcher.join()
    torch.save(result, file)
    return {"seconds": statistics.median(seconds), "peak": peak[0] - before}


def table(n: int, ways: list[str], rounds: int, threads: int) -> None:
    """Measure the ways by turns and print them."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    repeats = 3 if n <= 16 else 1
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way in ways:
                options = ["--child", way, "--tokens", str(n), "--rounds", str(repeats)]
                command = [sys.executable, __file__, *options, "--threads", str(threads)]
                done = subprocess.run(
                    [*command, "--file", f"{folder}/{way}"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        results = {way: torch.load(f"{folder}/{way}") for way in ways}
    first = ways[0]
    size = results[first].abs().max()
    click.echo(f"{n} tokens, {tuple(results[first].shape)} targets × sources, {threads} threads")
    for way in ways:
        seconds = statistics.median(run["seconds"] for run in found[way])
        peak = max(run["peak"] for run in found[way])
        line = f"  {way:6} {seconds:9.3f} s  {peak / 1e6:9.1f} MB"
        if way != first:
            base = statistics.median(run["seconds"] for run in found[first])
            memory = max(run["peak"] for run in found[first])
            apart = float((results[way] - results[first]).abs().max() / size)
            line += f"  {base / seconds:6.2f}× faster, {peak / memory:7.4f} of the memory"
            line += f", differs by {apart:.1e} of the largest"
        click.echo(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[9, 64])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        (n,) = given.tokens
        torch.set_num_threads(given.threads)
        found = measured(given.child, n, given.rounds, given.file)
        click.echo(json.dumps(found))
        return
    for n in given.tokens:
        table(n, given.ways, given.rounds, given.threads)


if __name__ == "__main__":
    main()

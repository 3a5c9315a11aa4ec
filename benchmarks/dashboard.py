"""How fast dashboards are made, and how that grows with latents and tokens.

    python benchmarks/dashboard.py
    python benchmarks/dashboard.py --peer PEERS/bin/python     # beside sae-dashboard

On the bundled model and one of its SAEs. With --peer, sae-dashboard of that environment makes its
feature data for the same SAE, latents and tokens (not beyond: its HTML and JSON are left out).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

import gossamer

SITE = "blocks.2.hook_resid_pre"

PEER = """
import json, sys, time, torch
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
told = json.load(open(sys.argv[1]))
torch.set_num_threads(told["threads"])
sae = SAE.load_from_disk(told["sae"])
config = HookedTransformerConfig(**told["config"])
model = HookedSAETransformer(config)
tokens = torch.tensor(told["tokens"])
start = time.perf_counter()
SaeVisRunner(SaeVisConfig(hook_point=sae.cfg.metadata.hook_name, features=told["latents"],
    minibatch_size_features=64, minibatch_size_tokens=64)
).run(encoder=sae, model=model, tokens=tokens)
print(json.dumps(time.perf_counter() - start))
"""


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--peer", default=None, help="A Python that has sae-dashboard.")
@click.option("--rounds", default=3, show_default=True)
def main(threads: int, peer: str | None, rounds: int) -> None:
    """Print seconds and tokens per second; the best of the rounds."""
    torch.set_num_threads(threads)
    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    sae: Any = saes[SITE]
    for n_latents in (64, 512, 2048):
        for n_tokens in (32_768, 131_072, 524_288):
            if n_latents < 2048 and n_tokens > 131_072:
                continue
            best = min(_seconds(model, sae, n_latents, n_tokens) for _ in range(rounds))
            click.echo(
                f"{n_latents:5} latents, {n_tokens:8,} tokens: {best:6.2f} s, "
                f"{n_tokens / best:9,.0f} tokens/s"
            )
    if peer is not None:
        click.echo(f"sae-dashboard, 64 latents, 32,768 tokens: {_peer(peer, threads, sae):.2f} s")


def _seconds(model: Any, sae: Any, n_latents: int, n_tokens: int) -> float:
    start = time.perf_counter()
    gossamer.dashboard(model, sae, latents=range(n_latents), n_tokens=n_tokens)
    return time.perf_counter() - start


def _peer(python: str, threads: int, sae: Any) -> float:
    """Seconds of the peer on a model of the same shape; its weights are random."""
    from gossamer.interop.sae_lens import write_sae_lens

    config = {"n_layers": 4, "d_model": 128, "n_ctx": 512, "d_head": 32, "n_heads": 4, "d_mlp": 512,
              "d_vocab": 4096, "act_fn": "gelu_new", "seed": 0}  # fmt: skip
    tokens = torch.randint(4096, (128, 256), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        write_sae_lens(sae, Path(folder) / "sae")
        told = {"threads": threads, "sae": f"{folder}/sae", "config": config,
                "tokens": tokens.tolist(), "latents": list(range(64))}  # fmt: skip
        (Path(folder) / "told.json").write_text(json.dumps(told))
        (Path(folder) / "peer.py").write_text(PEER)
        done = subprocess.run(
            [python, f"{folder}/peer.py", f"{folder}/told.json"], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

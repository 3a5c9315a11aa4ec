"""Attribution graphs against circuit-tracer's, at GPT-2-small shape.

    sh benchmarks/peers.sh DIRECTORY circuit-tracer
    python benchmarks/graph.py --peer DIRECTORY/bin/python          # side by side, in one run
    python benchmarks/graph.py --peer … --layers 4 --tokens 32      # smaller
    python benchmarks/graph.py --sweep                              # cost by tokens, nodes, layers

Random weights in GPT-2's architecture (d = 768, 12 heads, 50,257 tokens) and TopK transcoders of
8,192 latents at every MLP, 7 active a position: 64 tokens and 12 layers make about 5,300 latents.
Both read the same files and have the same number of threads. Each measurement is a process of its
own, by turns; a graph of three tokens comes first, so that what is loaded once is left out. Memory
is the peak beyond what the process held before the call, as the kernel keeps it; seconds of the
processor are there because other work on the machine stretches the others. circuit-tracer runs at
each of `--batches`: its fastest and its smallest are compared with.

circuit-tracer takes no latents and no errors at position 0, where this package has both, and
position embeddings and biases besides. The adjacency matrices are compared on a sample of rows,
where both have the source.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

WIDTH, HEADS, VOCABULARY, D_SAE = 768, 12, 50_257, 8192
SAMPLE = 200
"""Rows that are compared."""


class Setting(NamedTuple):
    """Sizes of one measurement."""

    layers: int = 12
    """Blocks of the model."""

    tokens: int = 64
    """Length of the prompt."""

    active: int = 7
    """Active latents of each transcoder at a position."""


SWEEP = [
    *(Setting(tokens=tokens) for tokens in (16, 32, 64, 128)),
    *(Setting(active=active) for active in (2, 14)),
    *(Setting(layers=layers) for layers in (3, 6)),
]
"""One size at a time, around the setting of the comparison."""


def say(text: str) -> None:
    """One line for whoever runs this."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write(setting: Setting, folder: Path) -> None:
    """The weights of the model and of its transcoders, and the prompt, for both contenders."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_layer": setting.layers,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "vocab_size": VOCABULARY,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=max(64, setting.tokens)))
    model.save_pretrained(folder / "model")
    for layer in range(setting.layers):
        W_enc, W_dec = torch.nn.functional.normalize(torch.randn(2, D_SAE, WIDTH), dim=-1)
        tensors = {"W_enc": W_enc.contiguous(), "W_dec": W_dec.contiguous() * 0.1}
        zeros = {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(WIDTH)}
        save_file(tensors | zeros, folder / f"layer_{layer}.safetensors")
    ids = [VOCABULARY - 1, *torch.randint(0, VOCABULARY - 1, (setting.tokens - 1,)).tolist()]
    (folder / "ids.json").write_text(json.dumps(ids))


def resident(name: str) -> int:
    """A number of bytes that the kernel keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measured(compute: Callable[[list[int]], Any], folder: Path) -> tuple[Any, dict[str, float]]:
    """What the call gives for the prompt, its seconds and those of the processor, and its peak
    memory beyond what was held before."""
    ids = json.loads((folder / "ids.json").read_text())
    compute(ids[:3])  # what is loaded once
    Path("/proc/self/clear_refs").write_text("5")
    before, start, used = resident("VmRSS"), time.perf_counter(), time.process_time()
    result = compute(ids)
    cost = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
    return result, cost | {"peak": resident("VmHWM") - before}


class Vocabulary:
    """What circuit-tracer asks of a tokenizer."""

    vocab_size = VOCABULARY
    all_special_ids = (VOCABULARY - 1,)
    padding_side = "right"

    def decode(self, ids: Any) -> str:
        return str(ids)


def by_circuit_tracer(setting: Setting, folder: Path, batch: int) -> dict[str, float]:
    """The peer, in its own environment; its graph goes to peer.npz."""
    from circuit_tracer.attribution.attribute_transformerlens import attribute  # pyright: ignore[reportMissingImports]
    from circuit_tracer.replacement_model.replacement_model_transformerlens import (  # pyright: ignore[reportMissingImports]
        TransformerLensReplacementModel,
    )
    from circuit_tracer.transcoder.activation_functions import TopK  # pyright: ignore[reportMissingImports]
    from circuit_tracer.transcoder.single_layer_transcoder import (  # pyright: ignore[reportMissingImports]
        TranscoderSet,
        load_transcoder,
    )
    from transformer_lens import HookedTransformerConfig  # pyright: ignore[reportMissingImports]
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights  # pyright: ignore[reportMissingImports]
    from transformers import GPT2LMHeadModel

    source = GPT2LMHeadModel.from_pretrained(folder / "model")
    config = HookedTransformerConfig(
        n_layers=setting.layers,
        d_model=WIDTH,
        n_ctx=source.config.n_positions,
        d_head=WIDTH // HEADS,
        n_heads=HEADS,
        d_mlp=4 * WIDTH,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        model_name="random",
        original_architecture="GPT2LMHeadModel",
    )
    model = TransformerLensReplacementModel(config)
    model.load_and_process_state_dict(
        convert_gpt2_weights(source, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    del source
    options = {"activation_fn": TopK(setting.active), "lazy_encoder": False, "lazy_decoder": False}
    transcoders = {
        layer: load_transcoder(str(folder / f"layer_{layer}.safetensors"), layer, **options)
        for layer in range(setting.layers)
    }
    model._configure_replacement_model(
        TranscoderSet(transcoders, "mlp.hook_in", "hook_mlp_out", scan="random")
    )
    model.tokenizer = Vocabulary()
    graph, cost = measured(lambda ids: attribute(ids, model, batch_size=batch), folder)
    np.savez(
        folder / "peer.npz",
        latents=graph.active_features.numpy(),
        logits=graph.logit_token_ids.numpy(),
        adjacency=graph.adjacency_matrix.numpy(),
    )
    n = len(graph.adjacency_matrix)
    return cost | {"latents": len(graph.active_features), "nodes": n}


def by_gossamer(setting: Setting, folder: Path) -> dict[str, float]:
    """This package; its graph goes to own.safetensors."""
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    import gossamer
    from gossamer.attribution.attribute import attribute
    from gossamer.saes import SAE, TopK

    model = gossamer.load_model(GPT2LMHeadModel.from_pretrained(folder / "model"))
    saes = []
    for layer in range(setting.layers):
        tensors = load_file(folder / f"layer_{layer}.safetensors")
        sites: dict[str, Any] = {
            "site_in": f"blocks.{layer}.mlp.hook_in",
            "site_out": f"blocks.{layer}.hook_mlp_out",
        }
        saes.append(SAE(**tensors, selection=TopK(setting.active), **sites))
    graph, cost = measured(lambda ids: attribute(model, saes, ids), folder)
    graph.save(folder / "own.safetensors")
    latents = int(graph.nodes.of_kind("latent").sum())
    return cost | {"latents": latents, "nodes": len(graph.nodes)}


def difference(setting: Setting, folder: Path) -> float:
    """The largest difference of the two adjacency matrices over that of their entries, on a sample
    of rows and every latent, error and token that both have."""
    from gossamer.graph.graph import Graph

    graph, peer = Graph.load(folder / "own.safetensors"), np.load(folder / "peer.npz")
    ids = json.loads((folder / "ids.json").read_text())
    layers, positions = range(setting.layers), range(setting.tokens)
    names = [f"blocks.{layer}.hook_mlp_out/{i}@{p}" for layer, p, i in peer["latents"].tolist()]
    names += [f"blocks.{layer}.hook_mlp_out/error@{p}" for layer in layers for p in positions]
    names += [f"hook_embed/{token}@{p}" for p, token in enumerate(ids)]
    names += [f"logits/{token}@{setting.tokens - 1}" for token in peer["logits"].tolist()]
    there = np.array([graph.nodes.number(name) for name in names])
    compared = np.array([not name.endswith("error@0") for name in names])
    matrix = peer["adjacency"]
    latents, logits = len(peer["latents"]), len(peer["logits"])
    rows = np.linspace(0, latents - 1, SAMPLE).astype(int).tolist()
    rows += range(len(names) - logits, len(names))
    largest = apart = 0.0
    for row in rows:
        dense = np.zeros(len(graph.nodes), np.float32)
        found = graph.rows.row(int(there[row]))
        dense[found.sources] = found.values
        apart = max(apart, float(np.abs(dense[there] - matrix[row])[compared].max()))
        largest = max(largest, float(np.abs(matrix[row]).max()))
    return apart / largest


def child(python: str, way: str, setting: Setting, options: list[str]) -> dict[str, float]:
    """One measurement, in a process of its own."""
    sizes = [f"--{name}={value}" for name, value in setting._asdict().items()]
    command = [python, __file__, "--child", way, *sizes, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, cost: dict[str, float]) -> None:
    say(
        f"  {name:28} {cost['seconds']:8.1f} s  {cost['processor']:8.1f} s of the processor  "
        f"{cost['peak'] / 1e6:8.0f} MB  {cost['latents']:.0f} latents, {cost['nodes']:.0f} nodes"
    )


def side_by_side(given: argparse.Namespace, setting: Setting) -> None:
    """Both on the same files, by turns, and the ratios of medians."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(setting, folder)
        options = ["--folder", place, "--threads", str(given.threads)]
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(given.rounds):
            own = child(sys.executable, "gossamer", setting, options)
            found.setdefault("gossamer", []).append(own)
            for batch in given.batches if given.peer else ():
                more = [*options, "--batch", str(batch)]
                peer = child(given.peer, "circuit-tracer", setting, more)
                found.setdefault(f"circuit-tracer, batch {batch}", []).append(peer)
        say(f"{setting.layers} layers, {setting.tokens} tokens, {given.threads} threads")
        medians = {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for name, runs in found.items()
        }
        for name, cost in medians.items():
            line(name, cost)
        own = medians.pop("gossamer")
        if medians:
            fastest, smallest = (
                min(cost[key] for cost in medians.values()) for key in ("seconds", "peak")
            )
            at_fastest = min(medians.values(), key=lambda cost: cost["seconds"])["peak"]
            say(
                f"  {fastest / own['seconds']:.1f}× faster than its fastest, at "
                f"{own['peak'] / at_fastest:.3f} of that one's memory and "
                f"{own['peak'] / smallest:.3f} of its least; matrices differ by "
                f"{difference(setting, folder):.1e} of the largest entry"
            )


def sweep(given: argparse.Namespace) -> None:
    """This package at other sizes."""
    for setting in SWEEP:
        with tempfile.TemporaryDirectory() as place:
            write(setting, Path(place))
            options = ["--folder", place, "--threads", str(given.threads)]
            name = f"{setting.layers} layers, {setting.tokens} tokens, k={setting.active}"
            line(name, child(sys.executable, "gossamer", setting, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", help="Python of an environment with circuit-tracer")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--active", type=int, default=7, help="of each transcoder at a position")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--child", choices=["gossamer", "circuit-tracer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(given.layers, given.tokens, given.active)
    if given.child == "gossamer":
        say(json.dumps(by_gossamer(setting, given.folder)))
    elif given.child:
        say(json.dumps(by_circuit_tracer(setting, given.folder, given.batch)))
    elif given.sweep:
        sweep(given)
    else:
        side_by_side(given, setting)


if __name__ == "__main__":
    main()

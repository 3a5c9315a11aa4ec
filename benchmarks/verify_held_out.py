"""Do a graph's edges hold in the true model? On held-out text, by what is changed and how much.

    python benchmarks/verify_held_out.py

For each of 20 prompts, a piece of 24 to 48 tokens from each of the first held-out files that have
512: the graph of the likeliest next tokens over pico-python's transcoders, its top 200 edges, and
what changing their sources really does. Top is by |weight| ("strongest"), by the score by which
edges are pruned ("scored"), or a sample in proportion to that score.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.classes import CLASSES, IN_WORDS, CheckedEdge
from gossamer.attribution.verifying.report import VerifyReport
from gossamer.corpus import split_stdlib
from gossamer.graph.graph import Graph

MANIFEST = Path(gossamer.__file__).parent / "assets" / "pico-python" / "manifest.json"
FIRST, LEAST, MOST = 256, 24, 48


def prompts(model: gossamer.Model, n: int) -> list[list[int]]:
    """Pieces of held-out files after `<|endoftext|>`, as token ids."""
    _, held_out = split_stdlib(MANIFEST)
    files = [ids for file in held_out if len(ids := model.tokenize(file.text)) >= 2 * FIRST][:n]
    lengths = np.linspace(LEAST, MOST, len(files)).round().astype(int).tolist()
    return [
        [ids[0], *ids[FIRST : FIRST + length - 1]]
        for ids, length in zip(files, lengths, strict=True)
    ]


def checked(
    model: gossamer.Model, saes: Mapping[str, Any], graphs: list[Graph], **options: Any
) -> VerifyReport:
    """The edges of all graphs in one report."""
    edges: list[CheckedEdge] = []
    for graph in graphs:
        edges += verify(graph, model, saes, **options).edges
    return VerifyReport(tuple(edges), about={"small": 0.1, "tolerance": 0.2})


def by_source(report: VerifyReport) -> list[str]:
    """Shares that hold, by where the source and the target are."""
    groups: dict[tuple[str, str], list[CheckedEdge]] = {}
    for edge in report.edges:
        kinds = [_kind(edge.source), _kind(edge.target)]
        groups.setdefault((kinds[0], kinds[1]), []).append(edge)
    lines = []
    for (source, target), edges in sorted(groups.items(), key=lambda item: -len(item[1])):
        shares = VerifyReport(tuple(edges), about=report.about).shares()
        within = ", ".join(f"{name} {share:.0%}" for name, share in shares.modes.items())
        lines.append(f"  {source} → {target}: {len(edges)} edges; {within}")
    return lines


def _kind(node: str) -> str:
    site, unit = node.split("/")
    kinds = {"hook_embed": "token", "hook_pos_embed": "position", "logits": "logit"}
    return "error" if unit.startswith("error") else kinds.get(site, "latent")


@click.command()
@click.option("--saes", default="pico-python/transcoders", show_default=True)
@click.option("--n-prompts", default=20, show_default=True)
@click.option("--n-edges", default=200, show_default=True, help="Edges of each prompt.")
def main(saes: str, n_prompts: int, n_edges: int) -> None:
    """Print the share of edges within 20 % of their weight, by mode, and how many in each class."""
    torch.set_num_threads(1)
    model, coders = gossamer.load_model("pico-python"), gossamer.load_saes(saes)
    texts = prompts(model, n_prompts)
    start = time.perf_counter()
    graphs = [graph for ids in texts if isinstance(graph := attribute(model, coders, ids), Graph)]
    made = time.perf_counter() - start
    sizes = [len(ids) for ids in texts]
    click.echo(
        f"{len(texts)} prompts of {min(sizes)} to {max(sizes)} tokens; "
        f"{np.mean([len(g.nodes) for g in graphs]):,.0f} nodes and "
        f"{np.mean([g.rows.n_entries for g in graphs]):,.0f} edges a graph, {made:.0f} s for all"
    )
    reports = {}
    for choose in ("strongest", "scored", "sampled"):
        start = time.perf_counter()
        reports[choose] = checked(model, coders, graphs, n_edges=n_edges, choose=choose)
        seconds = (time.perf_counter() - start) / len(graphs)
        click.echo(f"{choose}: {len(reports[choose].edges)} edges, {seconds:.1f} s a prompt")
    frozen = checked(model, coders, graphs, n_edges=n_edges, choose="scored", error="frozen")
    reports["scored, errors frozen"] = frozen
    shares = {name: report.shares() for name, report in reports.items()}
    click.echo(f"\n| within 20 % of the weight | {' | '.join(shares)} |")
    click.echo("| --- |" + " --- |" * len(shares))
    for mode, words in IN_WORDS.items():
        cells = " | ".join(f"{share.modes[mode]:.1%}" for share in shares.values())
        click.echo(f"| {words} | {cells} |")
    for kind in CLASSES:
        cells = " | ".join(f"{share.classes[kind]:.1%}" for share in shares.values())
        click.echo(f"| class: {kind} | {cells} |")
    for name, report in reports.items():
        click.echo("\n".join([f"\n{name}", *by_source(report)]))


if __name__ == "__main__":
    main()

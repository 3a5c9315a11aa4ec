"""`gossamer attribute`: a prompt's graph, pruned, checked, written; two prompts side by side."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.options import Count, OutFile
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.attribution.verifying.report import VerifyReport
    from gossamer.graph.difference import GraphDifference
    from gossamer.graph.graph import Graph

TRANSCODERS = {"pico-python": "pico-python/transcoders"}
"""Dictionaries of bundled models where none are named."""

LARGE = 2_000_000
"""Edges of a graph above which two graphs are compared after pruning."""


@click.command("attribute", short_help="The graph of what drives a prediction, with checked edges.")
@click.argument("prompt")
@click.option("--target", "targets", multiple=True, help="Explain this token (repeatable).")
@click.option(
    "--difference", nargs=2, default=None, metavar="A B", help="Explain the logit of A less B."
)
@click.option("--target-node", default=None, metavar="NODE", help="Explain this latent or logit.")
@click.option("--position", default=-1, show_default=True, help="Where tokens are predicted.")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option(
    "--saes",
    "saes_names",
    multiple=True,
    help="Bundled set or directory (repeatable, for mixes); default: the model's transcoders.",
)
@click.option(
    "--effects",
    default="direct",
    show_default=True,
    type=click.Choice(["direct", "gradient", "integrated"]),
    help="What an edge is.",
)
@click.option(
    "--hold",
    default=None,
    help="Held constant, with commas: attention, norms, mlps; default: what --effects takes.",
)
@click.option(
    "--max-nodes", default=None, type=Count(), help="Sum up the least influential latents beyond."
)
@click.option("--memory", default=None, type=Count(), help="Bytes that may be taken.")
@click.option(
    "--directory", default=None, type=click.Path(), help="Keep rows here; a stopped call goes on."
)
@click.option(
    "--nodes", default=0.8, show_default=True, help="Share of influence that pruning keeps."
)
@click.option(
    "--edges", default=0.98, show_default=True, help="Share of edges' scores that pruning keeps."
)
@click.option(
    "--verify",
    "n_verified",
    default=0,
    type=click.IntRange(min=0),
    help="Check this many of the strongest edges in the model.",
)
@click.option("--against", default=None, metavar="PROMPT", help="What differs from this prompt.")
@click.option(
    "--align",
    default="end",
    show_default=True,
    type=click.Choice(["start", "end"]),
    help="Where positions of two prompts are counted from.",
)
@click.option("--top", default=15, show_default=True, type=click.IntRange(min=1), help="Edges.")
@click.option("--out", default=None, type=OutFile(), help="Write the whole graph, .safetensors.")
@click.option("--html", default=None, type=OutFile(), help="Write the graph as an offline page.")
@click.option("--report", default=None, type=OutFile(), help="With --verify: its page.")
@click.option(
    "--neuronpedia", default=None, type=OutFile(), help="Write the pruned graph as graph JSON."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def attribute_command(prompt: str, **options: Any) -> None:
    """What drives a prediction: latents, errors, tokens and biases, and the edges between them. A
    backslash and n in PROMPT and tokens are a line break.

    \b
    Examples:
      gossamer attribute "def add(self, other):\\n    return self" --verify 200 --html g.html
      gossamer attribute "import os\\nimport " --target sys --out g.safetensors
      gossamer attribute "def f(self):\\n    return" --against "def f(cls):\\n    return"
    """
    _check(options)
    model, saes = _loaded(options)
    prompts = [text.replace("\\n", "\n") for text in (prompt, options["against"]) if text]
    if len(prompts) < (1 if options["against"] is None else 2):
        raise GossamerError("A prompt is empty; give a text.")
    graphs = _graphs(model, saes, prompts, options)
    if len(graphs) == 2:
        _two(graphs, options)
        return
    graph = graphs[0]
    pruned = graph.prune(nodes=options["nodes"], edges=options["edges"])
    report = None
    if options["n_verified"]:
        from gossamer.attribution.verify import verify

        shown = sys.stderr.isatty()
        report = verify(pruned, model, saes, n_edges=options["n_verified"], progress=shown)
    _write(graph, pruned, report, options)
    if options["as_json"]:
        click.echo(json.dumps(_as_json(graph, pruned, report, options["top"]), indent=1))
    else:
        _print(graph, pruned, report, options["top"])


def _check(options: dict[str, Any]) -> None:
    """Refuse what contradicts itself, before anything is computed."""
    named = [
        name
        for name, given in (
            ("--target", options["targets"]),
            ("--difference", options["difference"]),
            ("--target-node", options["target_node"] is not None),
        )
        if given
    ]
    if len(named) > 1:
        raise GossamerError(f"{' and '.join(named)} each name what is explained; give one of them.")
    for name in ("nodes", "edges"):
        if not 0 < options[name] <= 1:
            raise GossamerError(f"--{name} is a share above 0 and at most 1, got {options[name]}.")
    if options["report"] is not None and not options["n_verified"]:
        raise GossamerError("--report writes what --verify found; give --verify N as well.")
    if options["against"] is None:
        return
    for name in ("n_verified", "out", "neuronpedia"):
        if options[name]:
            option = {"n_verified": "verify"}.get(name, name)
            raise GossamerError(
                f"--{option} is of one graph, and --against makes two; leave it out."
            )
    if options["target_node"] is not None:
        raise GossamerError("--against explains logits; leave --target-node out.")


def _loaded(options: dict[str, Any]) -> tuple[Any, Any]:
    """The model and the dictionaries of all sets that are named."""
    from gossamer.library import load_model, load_saes

    name = options["model_name"]
    model = load_model(name)
    sets = options["saes_names"] or (TRANSCODERS.get(name, name),)
    return model, [sae for each in sets for sae in load_saes(str(each)).values()]


def _graphs(model: Any, saes: Any, prompts: list[str], options: dict[str, Any]) -> list[Any]:
    from gossamer.attribution.attribute import attribute

    found = attribute(
        model,
        saes,
        prompts if len(prompts) > 1 else prompts[0],
        _target(model, saes, prompts, options),
        None if options["hold"] is None else _words(options["hold"]),
        options["max_nodes"],
        effects=options["effects"],
        memory=options["memory"],
        directory=options["directory"],
        progress=True,
    )
    return found if isinstance(found, list) else [found]


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word and word != "none"]


def _target(model: Any, saes: Any, prompts: list[str], options: dict[str, Any]) -> Any:
    from gossamer.attribution.contrast import contrast
    from gossamer.attribution.targets import LogitDifference, Logits
    from gossamer.splice import chosen_bos

    position = options["position"]
    if options["target_node"] is not None:
        return options["target_node"]
    if options["difference"]:
        token, distractor = (each.replace("\\n", "\n") for each in options["difference"])
        return LogitDifference(token, distractor, position)
    if options["targets"]:
        return Logits([t.replace("\\n", "\n") for t in options["targets"]], position=position)
    if len(prompts) == 2:
        bos = chosen_bos(None, saes, prompts)
        return contrast(model, prompts[0], prompts[1], position=position, prepend_bos=bos)
    return Logits(position=position)


def _write(graph: "Graph", pruned: "Graph", report: "VerifyReport | None", options: Any) -> None:
    """The files that were asked for, each named on standard error."""
    if options["out"] is not None:
        click.echo(f"Wrote {graph.save(options['out'])}", err=True)
    if options["html"] is not None:
        verified = None if report is None else report.classes
        click.echo(f"Wrote {pruned.to_html(options['html'], verified=verified)}", err=True)
    if options["report"] is not None and report is not None:
        click.echo(f"Wrote {report.to_html(options['report'])}", err=True)
    where = options["neuronpedia"]
    if where is not None:
        from gossamer.interop.graph_json import write_graph_json

        write_graph_json(pruned, str(where))
        click.echo(f"Wrote {where}", err=True)


def _best(pruned: "Graph", n: int) -> list[Any]:
    """The edges that carry most of the influence, those of biases left out."""
    from gossamer.attribution.verifying.chosen import best_edges
    from gossamer.graph.edges import EdgeArrays

    best = best_edges(pruned, n, "scored", 0)
    return pruned.edges.named(EdgeArrays(best.sources, best.targets, best.weights))


def _as_json(
    graph: "Graph", pruned: "Graph", report: "VerifyReport | None", top: int
) -> dict[str, Any]:
    edges = [edge._asdict() for edge in _best(pruned, top)]
    if report is not None:
        for edge in edges:
            verdict = report.classes.get((edge["source"], edge["target"]))
            if verdict is not None:
                edge |= {"class": verdict.kind, "measured": verdict.measured}
    return {
        "tokens": graph.tokens,
        "about": dict(graph.about),
        "n_nodes": len(graph.nodes),
        "n_edges": len(graph.edges),
        "replacement_score": graph.replacement_score(),
        "completeness": graph.completeness(),
        "largest_residual": graph.residuals().largest,
        "pruned": {"n_nodes": len(pruned.nodes), "n_edges": len(pruned.edges)},
        "edges": edges,
        "verified": None if report is None else report.shares()._asdict(),
    }


def _print(graph: "Graph", pruned: "Graph", report: "VerifyReport | None", top: int) -> None:
    """The graph in words, its strongest edges, and what checking found."""
    from rich.text import Text

    residual = graph.residuals()
    targets = ", ".join(
        f"{graph.nodes[int(i)].label or graph.nodes[int(i)].id} ({graph.nodes[int(i)].weight:.2f})"
        for i in graph.nodes.targets
    )
    click.echo(
        f"{len(graph.nodes):,} nodes and {len(graph.edges):,} edges to {targets}\n"
        f"replacement score {graph.replacement_score():.3f}, completeness "
        f"{graph.completeness():.3f}; edges add up to {residual.largest:.1e} of Σ|edge|\n"
        f"pruned to {len(pruned.nodes):,} nodes and {len(pruned.edges):,} edges"
    )
    classes = {} if report is None else report.classes
    rows = []
    for edge in _best(pruned, top):
        verdict = classes.get((edge.source, edge.target))
        cells = [edge.source, edge.source_label, edge.target, edge.target_label]
        cells = [_short(cells[0]), cells[1], _short(cells[2]), cells[3], f"{edge.weight:+.3f}"]
        if report is not None:
            cells += ["", ""] if verdict is None else [f"{verdict.measured:+.3f}", verdict.kind]
        rows.append([Text(cell) for cell in cells])
    headings = ["source", "fires on", "target", "is", "edge"]
    headings += [] if report is None else ["measured", ""]
    _table(f"The {len(rows)} edges that carry most of it", headings, rows)
    if report is not None:
        click.echo(str(report))


def _two(graphs: list[Any], options: dict[str, Any]) -> None:
    """What two graphs share and what not."""
    from rich.text import Text

    from gossamer.graph.difference import compare_graphs

    if max(len(graph.edges) for graph in graphs) > LARGE:
        graphs = [graph.prune(options["nodes"], options["edges"]) for graph in graphs]
    difference: GraphDifference = compare_graphs(graphs[0], graphs[1], options["align"])
    if options["html"] is not None:
        click.echo(f"Wrote {difference.to_html(options['html'])}", err=True)
    edges = difference.top(options["top"])
    if options["as_json"]:
        found = {
            "tokens": [graph.tokens for graph in graphs],
            "target": graphs[0].about["target"],
            "counts": difference.counts(),
            "edges": [edge._asdict() for edge in edges],
        }
        click.echo(json.dumps(found, indent=1))
        return
    for kind, counts in difference.counts().items():
        click.echo(f"{kind}: " + ", ".join(f"{n:,} {side}" for side, n in counts.items()))
    rows = [
        [
            Text(cell)
            for cell in (
                _short(edge.source),
                _short(edge.target),
                edge.side,
                f"{edge.first:+.3f}",
                f"{edge.second:+.3f}",
            )
        ]
        for edge in edges
    ]
    headings = ["source", "target", "in", "first", "second"]
    _table(f"The {len(rows)} edges that differ most", headings, rows)


def _table(title: str, headings: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        is_number = heading in ("edge", "measured", "first", "second")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _short(node: str) -> str:
    """A node id with its site abbreviated: blocks.3.hook_mlp_out → 3.mlp_out."""
    return node.removeprefix("blocks.").replace("hook_", "")

"""Attribution graphs: all latents, errors, tokens, biases and logits of a prompt, with their edges.

    edge    A[t, s] = write(s) · J(s→t) · read(t)       reads(t) = constant(t) + Σ_s A[t, s]

All SAEs passed are spliced, and every path through a spliced site is cut: an edge is direct between
spliced sites. J is that of the model's other pieces at the clean run, with attention patterns and
norm scales held unless asked otherwise. The edges into a node add up to what it reads, since what a
piece gives beyond its linear part is a node too. docs/math.md has the definitions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from gossamer.attribution.graphs.prompt import Aim, How, graph_of
from gossamer.attribution.graphs.run import check_finite
from gossamer.attribution.progress import Progress
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.models.prompts import are_many, as_prompts
from gossamer.saes.crosscoder import Face
from gossamer.sites import parse_node
from gossamer.splice import as_saes, check_saes, chosen_bos

Effects = Literal["direct", "gradient", "integrated"]
"""What an edge is: linear with attention and norms held; the true gradient times the activation;
the gradient integrated along the path from no activation to the clean run's."""

HELD: dict[str, tuple[str, ...]] = {
    "direct": ("attention", "norms"),
    "gradient": (),
    "integrated": ("norms",),
}
"""What each holds unless told otherwise."""

LOGITS = Logits()
"""The default target."""


def attribute(  # noqa: PLR0913, PLR0917  the public face, fixed by the design
    model: Model,
    saes: Any,
    prompt: Any,
    target: Any = LOGITS,
    hold: Sequence[str] | None = None,
    max_nodes: int | None = None,
    *,
    effects: Effects = "direct",
    steps: int = 16,
    memory: int | None = None,
    directory: str | Path | None = None,
    engine: Literal["plain"] | None = None,
    progress: Progress = False,
) -> Graph | list[Graph]:
    """The graph of what drives a target: one prompt gives a Graph, a list of prompts a list.

    Args:
        model: the model.
        saes: any mix of SAEs, transcoders and crosscoders; layers may be missing, widths may
            differ. The latents of crosscoders are leaves, those of the clean run.
        prompt: a text, token ids, chat messages, or a list of these, of any lengths.
        target: Logits (by default the fewest tokens that reach a probability of 0.95, at most 10,
            each with its probability as weight), LogitDifference, Latents, or a node's id.
        hold: kept constant: "attention" (patterns), "norms" (every scale), "mlps" (what MLPs
            without a dictionary write, which is linearised otherwise). None: what `effects` takes,
            ("attention", "norms"), () or ("norms",).
        max_nodes: most nodes of the graph; latents of least influence are summed up in the
            remainder of their site and position. None: all.
        effects: what edges are: "direct", "gradient" or "integrated".
        steps: midpoints of the path of "integrated".
        memory: bytes that the call may take beyond what is taken already; None: half of what is
            free. It sets how much is computed at once, and no number.
        directory: where rows of edges lie while and after they are computed: a call that was
            cancelled goes on there. None: a temporary place.
        engine: "plain" computes by autograd what is done by hand otherwise, with the same result.
        progress: True shows the plan and a bar on standard error; a function is told
            progress(rows done, rows in all) between batches, and stops the call by raising.

    Raises SiteError for SAEs where no node can stand, GossamerError when the graph does not fit.
    """
    coders = as_saes(saes, faces=True, later=True)
    check_saes(model, coders)
    check_finite(coders)
    if engine not in (None, "plain"):
        raise GossamerError(f'engine is "plain" or None, got {engine!r}.')
    for name, count in (("steps", steps), ("max_nodes", max_nodes), ("memory", memory)):
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise GossamerError(f"{name} is a whole number from 1 on, got {count!r}.")
    how = How(
        model=model,
        saes=coders,
        effects=effects,
        hold=_held(effects, hold),
        steps=steps,
        max_nodes=max_nodes,
        memory=memory,
        plain=engine == "plain",
        progress=progress,
    )
    aim = _aim(target, coders)
    prompts = as_prompts(prompt)
    bos = chosen_bos(None, coders.values(), prompts)
    batches = [model.batch([each], prepend_bos=bos) for each in prompts]
    many = are_many(prompt)
    graphs = []
    for i, batch in enumerate(batches):
        place = None if directory is None else Path(directory)
        place = place / f"prompt-{i}" if place is not None and many else place
        graphs.append(graph_of(how, batch, aim, place))
    return graphs if many else graphs[0]


def _held(effects: str, hold: Sequence[str] | str | None) -> tuple[str, ...]:
    if effects not in get_args(Effects):
        raise GossamerError(f"effects is one of {', '.join(get_args(Effects))}, got {effects!r}.")
    if hold is None:
        return HELD[effects]
    held = (hold,) if isinstance(hold, str) else tuple(dict.fromkeys(hold))
    if effects == "gradient" and held:
        raise GossamerError(
            f'effects="gradient" holds nothing, and hold={list(held)} was given; leave hold out, '
            'or take effects="direct" with it.'
        )
    return held


def _aim(target: Any, saes: Mapping[str, Any]) -> Aim:
    """A target as one of the three descriptions."""
    if isinstance(target, str):
        target = _of_node(target)
    if not isinstance(target, Aim):
        raise GossamerError(
            "A graph's target is Logits, LogitDifference, Latents or a node's id, got "
            f"{str(target)[:60]!r} of type {type(target).__name__}."
        )
    if isinstance(target, Latents) and target.site not in saes:
        raise SiteError(
            f"No SAE writes {target.site}. The SAEs passed write: {', '.join(saes) or 'nowhere'}."
        )
    if isinstance(target, Latents) and isinstance(saes[target.site], Face):
        raise GossamerError(
            f"The latents at {target.site} are of a crosscoder, and in a graph those are leaves: "
            "the splice takes them from the clean run. Take gossamer.edges for what drives them."
        )
    return target


def _of_node(text: str) -> Aim:
    node = parse_node(text)
    if node.site == "logits" and isinstance(node.unit, str) and "-" in node.unit:
        return LogitDifference(*map(int, node.unit.split("-")), position=node.position)
    if not isinstance(node.unit, int) or node.key_position is not None:
        raise SiteError(
            f'"{text}" is no target; name a latent such as blocks.3.hook_mlp_out/1234@7, or a '
            "logit such as logits/318@14."
        )
    if node.site == "logits":
        return Logits(node.unit, position=node.position)
    return Latents(node.site, positions=node.position, indices=node.unit)

"""`analyze`, `analyze_batch` and `upstream`: explain one number of a prompt by its nodes.

Requests of one kind (SAEs, hold, error) share passes: as many in each as the memory allows.
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gossamer.analysis.directions import Direction, Route, Through, as_direction
from gossamer.analysis.estimate import estimated_change
from gossamer.analysis.memory import rows_at_once
from gossamer.analysis.passes import How, Job, Row, check_edits, run_pass
from gossamer.analysis.readings import reading
from gossamer.analysis.result import Analysis, TableRow
from gossamer.analysis.table import Choice, Subject, check_cut, rows_named, table
from gossamer.analysis.view import view_of
from gossamer.analysis.words import described
from gossamer.attribution.targets import Logits
from gossamer.edits import AbstractEdit
from gossamer.errors import GossamerError, SiteError
from gossamer.machine import Cost, free_memory, measured
from gossamer.models.model import HOLDABLE, Model
from gossamer.models.prompts import are_many, as_prompts, check_prompt
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_node
from gossamer.splice import ErrorMode, Plan, as_saes, check_saes, chosen_bos

N_PREDICTIONS = 10
"""Next tokens that an analysis lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One analysis of a batch."""

    prompt: Any
    """A text, token ids or chat messages."""

    target: Any = None
    """A token, several, or a direction; None: the logit of the clean run's likeliest next token.
    With `upstream` it goes with v alone: what the head's output is read along."""

    saes: Any = None
    """None, an SAE, several, or a mapping."""

    edits: AbstractEdit | Sequence[AbstractEdit] = ()
    """Changes; the number without them is given beside."""

    upstream: Through | None = None
    """A node to explain instead of the target."""

    hold: Sequence[str] = ("norms",)
    """Kept constant in the backward pass: "norms" (every scale), "attention" (patterns)."""

    error: ErrorMode = "attached"
    """The splice's error term."""

    choice: Choice = Choice()
    """Which rows are listed."""

    prepend_bos: bool | None = None
    """Overrides the family's rule for texts."""


def analyze(  # noqa: PLR0913, PLR0917  the public face, fixed by the design
    model: Model,
    prompt: Any,
    target: Any = None,
    saes: Any = None,
    edits: AbstractEdit | Sequence[AbstractEdit] = (),
    hold: Sequence[str] = ("norms",),
    *,
    error: ErrorMode = "attached",
    top: int | None = 30,
    kinds: Sequence[str] | str | None = None,
    cut: str | None = None,
    pairs: bool = False,
    prepend_bos: bool | None = None,
    memory: int | None = None,
) -> Analysis:
    """A node table that adds up to a number of the prompt.

    Args:
        model: the model.
        prompt: a text, token ids or chat messages: one prompt.
        target: what is explained: a token (its logit), several (their mean), or a direction:
            LogitDifference, LogitMinusMean, Probability, LogProbability, KL, NodeValue,
            ResidualDirection, Through. None: the likeliest next token's logit, likeliest in the
            clean run.
        saes: None, an SAE, several, or a mapping; their latents are nodes.
        edits: changes; the number without them, and what the clean gradient says of their effect,
            are given beside.
        hold: kept constant in the backward pass: "norms" (every scale), "attention" (patterns).
        error: what the splice adds to the reconstruction, as in `run`.
        top: so many of the largest and of the smallest rows of each column; None: all.
        kinds: only these kinds of node are listed; None: all.
        cut: where the model is cut into the nodes that count; see `table.py`.
        pairs: heads by query and key, rather than by query.
        prepend_bos: overrides the family's rule for texts.
        memory: bytes that the call may take; None: half of what is free.
    """
    if are_many(prompt) and as_prompts(prompt):
        raise GossamerError(
            "analyze takes one prompt; for several write analyze_batch(model, [Request(…), …])."
        )
    chosen = None if kinds is None else ((kinds,) if isinstance(kinds, str) else tuple(kinds))
    request = Request(
        prompt=prompt,
        target=target,
        saes=saes,
        edits=edits,
        hold=hold,
        error=error,
        choice=Choice(top=top, kinds=chosen, cut=cut, pairs=pairs),
        prepend_bos=prepend_bos,
    )
    return analyze_batch(model, [request], memory=memory)[0]


def upstream(  # noqa: PLR0913  the public face, fixed by the design
    model: Model,
    prompt: Any,
    node: str,
    through: Route = "pre",
    *,
    target: Any = None,
    saes: Any = None,
    edits: AbstractEdit | Sequence[AbstractEdit] = (),
    hold: Sequence[str] = ("norms",),
    error: ErrorMode = "attached",
    top: int | None = 30,
    cut: str | None = None,
    pairs: bool = False,
    prepend_bos: bool | None = None,
    memory: int | None = None,
) -> Analysis:
    """A table of what is upstream of a node: of a head's score through "q", "k" or "qk", of what it
    writes along `target` through "v", of a neuron's or an active latent's pre-activation ("pre").

    The arguments are those of `analyze`. A q- or k-table adds up to the score, the other side held;
    the qk-table is both together. SiteError for a latent that is not active: ask `analyze` for
    NodeValue(node) to see why it is not.
    """
    request = Request(
        prompt=prompt,
        target=target,
        saes=saes,
        edits=edits,
        upstream=Through(node, through),
        hold=hold,
        error=error,
        choice=Choice(top=top, cut=cut, pairs=pairs),
        prepend_bos=prepend_bos,
    )
    return analyze_batch(model, [request], memory=memory)[0]


def analyze_batch(
    model: Model, requests: Sequence[Request], *, memory: int | None = None
) -> list[Analysis]:
    """Several analyses, of prompts of any lengths, in one pass where they share SAEs, hold and
    error, and the memory allows. The results are those of single calls."""
    return analyze_prepared(model, [prepared(model, each) for each in requests], memory=memory)


class Prepared(NamedTuple):
    """A request, checked."""

    request: Request
    """What was asked."""

    how: How
    """What it has in common with others that may share its pass."""

    job: Job
    """Its own."""

    @property
    def key(self) -> Hashable:
        """The same for requests that may share a pass."""
        saes = tuple((site, id(sae)) for site, sae in self.how.saes.items())
        return saes, self.how.hold, self.how.error


def prepared(model: Model, request: Request) -> Prepared:
    """A request, checked against the model before anything is computed."""
    coders = as_saes(request.saes)
    check_saes(model, coders)
    Plan(error=request.error)  # refuses an unknown mode
    check_cut(model, request.choice.cut)
    hold = (request.hold,) if isinstance(request.hold, str) else tuple(request.hold)
    model.held_sites(hold, HOLDABLE)
    members = as_prompts(request.prompt)
    if len(members) != 1:
        raise GossamerError(f"A request has one prompt, got {len(members)}; give one for each.")
    bos = chosen_bos(request.prepend_bos, coders.values(), members)
    ids = model.tokenize(members[0], bos)
    check_prompt(ids, model.context_length, model.d_vocab)
    edits = (request.edits,) if isinstance(request.edits, AbstractEdit) else tuple(request.edits)
    job = Job(ids, edits, reading(model, coders, _direction(request), len(ids), hold))
    check_edits(job, coders, model)
    return Prepared(request, How(coders, hold, request.error), job)


def analyze_prepared(
    model: Model, ready: Sequence[Prepared], *, memory: int | None = None
) -> list[Analysis]:
    """`analyze_batch` of requests that were checked already."""
    groups: dict[Hashable, list[int]] = {}
    for number in sorted(range(len(ready)), key=lambda number: len(ready[number].job.ids)):
        groups.setdefault(ready[number].key, []).append(number)
    found: dict[int, Analysis] = {}
    allowed = free_memory(model.device) // 2 if memory is None else memory
    for members in groups.values():
        how = ready[members[0]].how
        while members:
            some = rows_at_once(model, [ready[n].job for n in members], how, allowed)
            now, members = members[:some], members[some:]
            with measured(model.device) as cost:
                rows = run_pass(model, [ready[n].job for n in now], how)
            for number, pair in zip(now, rows, strict=True):
                found[number] = _analysis(model, ready[number], pair, cost)
    return [found[number] for number in range(len(ready))]


def _direction(request: Request) -> Direction:
    """What is explained."""
    upstream, target = request.upstream, request.target
    if upstream is None:
        return Logits() if target is None else as_direction(target)
    if target is None:
        return upstream
    if upstream.route != "v" or upstream.downstream is not None:
        raise GossamerError(
            f"A trace through {upstream.route} explains {upstream.node}, so it takes no target "
            "beside; leave that out."
        )
    return replace(upstream, downstream=target)


def _analysis(model: Model, ready: Prepared, pair: tuple[Row, Row | None], cost: Cost) -> Analysis:
    """The table of one request."""
    (request, how, job), (row, clean) = ready, pair
    _check_active(request, row, how.saes)
    started = time.perf_counter()
    tokens = tuple(model.token_strings(job.ids))
    view = view_of(row.trace, known=row.active)
    changed = bool(job.edits) or how.error == "dropped"
    subject = Subject(job.reading, row.value * job.reading.times, job.ids, tokens, changed)
    cut, rows, sums = table(view, subject, request.choice)
    beside, estimate = None, None
    if clean is not None:
        seen = view_of(clean.trace, known=clean.active)
        estimate = estimated_change(seen, job.edits) / job.reading.times
        beside = _analysis(model, ready._replace(job=replace(job, edits=())), (clean, None), cost)

    def rows_at(nodes: list[str]) -> tuple[TableRow, ...]:
        return rows_named(view, subject, replace(request.choice, cut=cut), nodes)

    return Analysis(
        prompt_ids=tuple(job.ids),
        tokens=tokens,
        target=described(model, job.reading.direction),
        position=job.reading.position,
        value=row.value,
        clean_value=None if clean is None else clean.value,
        estimate=estimate,
        cut=cut,
        hold=how.hold,
        rows=rows,
        sums=sums,
        predictions=predictions(model, row),
        trace=row.trace,
        clean=beside,
        seconds=cost.seconds + time.perf_counter() - started,
        peak_bytes=cost.peak_bytes,
        logits=row.logits,
        rows_at=rows_at,
    )


def _check_active(request: Request, row: Row, saes: Mapping[str, SparseCoder]) -> None:
    """SiteError for an upstream table of a latent that is not active."""
    if request.upstream is None or request.upstream.route != "pre":
        return
    node = parse_node(request.upstream.node)
    if node.site not in saes:
        return
    active = view_of(row.trace, known=row.active).active(node.site)
    here = active.positions == node.position
    if node.unit not in active.units[here].tolist():
        kind = "pre-activation" if isinstance(saes[node.site], SAE) else "value"
        raise SiteError(
            f"Latent {node.unit} of {node.site} is not active at position {node.position} (its "
            f"{kind} is {row.value:.4g}), so nothing flows through it; {int(here.sum())} others "
            "are. Name one of them, or analyze the target NodeValue(node) to see why it is not."
        )


def predictions(model: Model, row: Row) -> tuple[tuple[str, int, float, float], ...]:
    """The likeliest next tokens."""
    if row.logits is None:
        return ()
    best = row.logits.topk(min(N_PREDICTIONS, len(row.logits)))
    probabilities = row.logits.softmax(-1)[best.indices].tolist()
    ids = best.indices.tolist()
    names = model.token_strings(ids)
    return tuple(zip(names, ids, best.values.tolist(), probabilities, strict=True))

"""One forward and one backward pass for several requests, each with its own number to explain.

Rows of the batch are prompts, edited as each request says; a request with edits has a second,
unedited row. s_i being row i's number, the gradients of Σ_i s_i are all that the tables need, since
rows do not see each other. SAEs are spliced in only where that changes something: with attached
errors and no edit of theirs the run is the model's own, to the bit and with its gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.directions import KL
from gossamer.analysis.logits import capped, logits_at
from gossamer.analysis.reading import Reading, Seen, at_position
from gossamer.analysis.view import Active
from gossamer.attribution.targets import Logits
from gossamer.edits import AbstractEdit, Detach, edited_writers, indices_of
from gossamer.errors import GossamerError, SiteError
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch, pad
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import ErrorMode, Plan, Trace, flat, run_batch

_RECORDED = (
    "hook_resid_pre",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "ln1_post.hook_scale",
    "hook_attn_out",
    "mlp.hook_post",
    "ln2_post.hook_scale",
    "hook_mlp_out",
)
"""Kinds of site in each block that tables are made of."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked."""

    ids: list[int]
    """The prompt."""

    edits: tuple[AbstractEdit, ...]
    """Changes in its row."""

    reading: Reading
    """The number."""


@dataclass(frozen=True, slots=True)
class How:
    """What the requests of one pass have in common."""

    saes: Mapping[str, SparseCoder]
    """Given, by the site each one writes."""

    hold: tuple[str, ...]
    """Held constant in the backward pass."""

    error: ErrorMode
    """The splice's error term."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a pass found for one prompt."""

    value: float
    """The number."""

    trace: Trace
    """Its run, alone: one row, no padding."""

    logits: Float[Tensor, " d_vocab"] | None
    """Scores at the number's position, cap included, where the pass went so far."""

    active: Mapping[str, Active]
    """Active latents of SAEs that were not spliced in, by the site each one writes."""


def run_pass(model: Model, jobs: Sequence[Job], how: How) -> list[tuple[Row, Row | None]]:
    """(the edited row, the clean one where there are edits) of each job."""
    rows: list[tuple[Job, bool]] = []
    for job in jobs:
        rows += [(job, True), (job, False)] if job.edits else [(job, True)]
    clean_row = {id(job): row for row, (job, edited) in enumerate(rows) if not edited}
    batch = pad([job.ids for job, _ in rows])
    batch = TokenBatch(batch.tokens.to(model.device), batch.mask.to(model.device))
    edits: list[AbstractEdit] = [
        replace(edit, prompts=row)
        for row, (job, edited) in enumerate(rows)
        if edited
        for edit in job.edits
    ]
    sites = recorded(model, jobs, how.saes)
    held = [Detach(site) for site in model.held_sites(how.hold) if _upto(site, sites)]
    spliced = {site: how.saes[site] for site in splices(how, edits) if _upto(site, sites)}
    settings: dict[int, BlockSetting] = {}
    with torch.enable_grad():
        plan = Plan((*edits, *held), tuple(sites), how.error, logits=False)
        with noted(model.layout, settings):
            trace = run_batch(model, batch, spliced, plan)
        seen = Seen(model, trace.activations, trace.inputs, settings)
        given = _given(seen, rows, clean_row)
        values = [job.reading.of(seen, row, given[row]) for row, (job, _) in enumerate(rows)]
        _check_finite(values, rows)
        edited_at = {edit.at for edit in edits}
        at = {s: v for s, v in trace.activations.items() if _has_effect(s) or s in edited_at}
        own = {job.reading.splice for job in jobs}
        before = {s: v for s, v in trace.inputs.items() if s in own}
        gradients = _gradients(torch.stack(values).sum(), at, before)
    active = _active(trace, how.saes)
    found = [
        Row(
            float(values[row].detach()) / job.reading.times,
            _alone(trace, gradients, row, job=job, saes=how.saes),
            _logits(seen, row, job.reading),
            active[row],
        )
        for row, (job, _) in enumerate(rows)
    ]
    edited_rows = [row for row, (_, edited) in enumerate(rows) if edited]
    return [
        (found[row], found[clean_row[id(job)]] if job.edits else None)
        for job, row in zip(jobs, edited_rows, strict=True)
    ]


def recorded(model: Model, jobs: Sequence[Job], saes: Mapping[str, SparseCoder]) -> list[str]:
    """The sites that a pass records: what tables and readings need, up to the last reading."""
    wanted = {site for job in jobs for reading in _chain(job.reading) for site in reading.sites}
    wanted |= {reading.residual for job in jobs for reading in _chain(job.reading)}
    last = max(parse_site(site).order for site in wanted)
    base = [s for s in model.sites if s in ("hook_embed", "hook_pos_embed")]
    base += [
        site
        for layer in range(model.n_layers)
        for kind in _RECORDED
        if (site := f"blocks.{layer}.{kind}") in model.sites
    ]
    base += [site for sae in saes.values() for site in (sae.site_in, sae.site_out)]
    base += [edit.at for job in jobs for edit in job.edits]
    sites = wanted | {site for site in base if parse_site(site).order <= last}
    return sorted(sites, key=lambda site: parse_site(site).order)


def _chain(reading: Reading) -> list[Reading]:
    return [reading] if reading.downstream is None else [reading, reading.downstream]


def _upto(site: str, sites: Sequence[str]) -> bool:
    return parse_site(site).order <= parse_site(sites[-1]).order


def splices(how: How, edits: Sequence[AbstractEdit]) -> set[str]:
    """The sites of the SAEs whose splice changes something."""
    return set(how.saes) if how.error != "attached" else edited_writers(edits, how.saes)


def check_edits(job: Job, saes: Mapping[str, SparseCoder], model: Model) -> None:
    """Refuse edits that cannot change the number, that name a batch's rows, or positions that the
    prompt does not have: before a pass that others share."""
    last = max(parse_site(site).order for site in job.reading.sites)
    for edit in job.edits:
        if edit.prompts is not None:
            raise GossamerError(
                f"A request has one prompt, so its edit at {edit.at} takes no prompts=; leave it "
                "out."
            )
        model.check_site(edit.at)
        if parse_site(edit.at).order > last:
            raise SiteError(
                f"The edit at {edit.at} comes after what is explained, which is read at "
                f"{job.reading.sites[0]}, and cannot change it; edit an earlier site."
            )
        if (edit.latents is not None or edit.part) and edit.at == job.reading.splice:
            raise SiteError(
                f"The edit at {edit.at} changes what its SAE writes, after the pre-activation that "
                "is explained was read, and cannot change it; edit an earlier site."
            )
        for position in (*indices_of(edit.positions), *indices_of(edit.keys)):
            at_position(position, len(job.ids))
        if edit.part is not None and edit.at not in saes:
            raise SiteError(
                f"An edit names the error at {edit.at}, where no SAE writes; SAEs write "
                f"{', '.join(saes) or 'nowhere'} here."
            )


def _given(
    seen: Seen, rows: Sequence[tuple[Job, bool]], clean_row: Mapping[int, int]
) -> list[Tensor | None]:
    """What each row's number is read along."""
    given: list[Tensor | None] = [None] * len(rows)
    totals, downstream = [], []
    for row, (job, _) in enumerate(rows):
        reading = job.reading
        target = reading if reading.downstream is None else reading.downstream
        clean = clean_row.get(id(job), row)
        if clean != row and isinstance(target.direction, KL | Logits):
            with torch.no_grad():  # the likeliest token, too, is the clean run's
                logits = capped(seen.model, logits_at(seen, clean, target.position))
                given[row] = logits.log_softmax(-1)
        if reading.downstream is not None:
            totals.append(reading.downstream.of(seen, row, given[row]))
            downstream.append((row, seen.stream(reading.downstream)))
    if totals:
        found = torch.autograd.grad(
            torch.stack(totals).sum(),
            [stream for _, stream in downstream],
            retain_graph=True,
            allow_unused=True,
        )
        for (row, stream), gradient in zip(downstream, found, strict=True):
            given[row] = torch.zeros_like(stream[row]) if gradient is None else gradient[row]
    return given


def _check_finite(values: Sequence[Tensor], rows: Sequence[tuple[Job, bool]]) -> None:
    for value, (job, edited) in zip(values, rows, strict=True):
        value = value.detach()
        if not bool(torch.isfinite(value)):
            raise GossamerError(
                f"The model gave {float(value)} for {type(job.reading.direction).__name__}"
                f"{' with these edits' if edited and job.edits else ''}, which is no finite "
                "number; make the edits smaller, or run the model in float32."
            )


class Gradients(NamedTuple):
    """Of the sum of all numbers, by values; those that it does not depend on are left out."""

    at: dict[str, Tensor]
    """By the value at each site."""

    before: dict[str, Tensor]
    """By what an SAE read, by the site it writes: before the splice there."""


def _gradients(total: Tensor, at: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Gradients:
    """∂ total / ∂ each value."""
    found = Gradients({}, {})
    places = [(where, s) for where, each in enumerate((at, before)) for s in each]
    values = [(at, before)[where][s] for where, s in places]
    able = [i for i, value in enumerate(values) if value.requires_grad]
    if total.requires_grad and able:
        gradients = torch.autograd.grad(total, [values[i] for i in able], allow_unused=True)
        for i, gradient in zip(able, gradients, strict=True):
            if gradient is not None:
                found[places[i][0]][places[i][1]] = gradient
    return found


def _has_effect(site: str) -> bool:
    """Whether tables need a gradient at a site; patterns, values and scales are read as values."""
    return not site.endswith(("hook_pattern", "hook_v", "hook_scale"))


def _alone(
    trace: Trace,
    gradients: Gradients,
    row: int,
    *,
    job: Job,
    saes: Mapping[str, SparseCoder],
) -> Trace:
    """One row of a batch, without its padding, its graph let go."""
    n = len(job.ids)

    def cut(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {site: _cut(site, value, row, n) for site, value in values.items()}

    read, own = job.reading.residual, job.reading.splice
    activations = dict(trace.activations)
    slopes = dict(gradients.at)
    if own in trace.inputs:  # the stream that the SAE read, not what its splice made of it
        activations[read] = trace.inputs[own]
        slopes.pop(read, None)
        if own in gradients.before:
            slopes[read] = gradients.before[own]
    slopes.setdefault(read, torch.zeros_like(activations[read]))
    return Trace(
        trace.tokens[row : row + 1, :n],
        trace.mask[row : row + 1, :n],
        None,
        cut(activations),
        cut(trace.latents),
        cut(trace.pre_activations),
        cut(trace.reconstructions),
        cut(trace.errors),
        trace.model,
        saes,
        cut(slopes),
        read,
        cut(trace.inputs),
    )


def _cut(site: str, value: Tensor, row: int, n: int) -> Tensor:
    one_of_many = len(value) > 1
    value = value[row : row + 1].detach()
    if one_of_many:  # a row that is kept does not keep the others
        value = value.clone()
    if parse_site(site).kind in ("attn.hook_pattern", "attn.hook_attn_scores"):
        return value[:, :, :n, :n]
    return value[:, :n]


def _active(trace: Trace, saes: Mapping[str, SparseCoder]) -> list[dict[str, Active]]:
    """Active latents of each row, every SAE encoding all rows at once."""
    lengths = trace.mask.sum(-1)
    ends = lengths.cumsum(0).tolist()
    found: list[dict[str, Active]] = [{} for _ in ends]
    for site, sae in saes.items():
        there = {site, sae.site_in} <= trace.activations.keys()
        if not there or site in trace.latents or not isinstance(sae, SAE):
            continue
        with torch.no_grad():
            x = flat(trace.activations[sae.site_in])[trace.mask]
            sparse = sae.encode_sparse(x)
        for row, end in enumerate(ends):
            start = end - int(lengths[row])
            part = slice(int(sparse.offsets[start]), int(sparse.offsets[end]))
            positions = sparse.rows[part] - start
            found[row][site] = Active(positions, sparse.indices[part], sparse.values[part])
    return found


def _logits(seen: Seen, row: int, reading: Reading) -> Any:
    """Scores at the number's position, where the final norm was seen."""
    last = reading if reading.downstream is None else reading.downstream
    if "ln_final.hook_normalized" not in last.sites:
        return None
    with torch.no_grad():
        return capped(seen.model, logits_at(seen, row, last.position))

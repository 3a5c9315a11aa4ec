"""How much of a target the strongest latents of a graph make up by themselves.

    faithfulness(C) = (F(C) − F(∅)) / (F(M) − F(∅))

F is what the graph explains, Σ weight · target; M the model as it is, C a run in which only some
latents are kept and every other latent of the spliced SAEs, whether the graph has it or not, is
zero or its mean at its position; ∅ the run that keeps none. Kept latents are encoded anew from what
they read in their own run, but for a crosscoder's, which are the clean run's. Errors keep their
clean values, or are ablated as the latents are.
(Marks et al., arXiv 2403.19647, section 4.)
"""

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.means import Means
from gossamer.attribution.verifying.fit import stage_of
from gossamer.attribution.verifying.page import MARGIN, SIZE, page_of, table
from gossamer.attribution.verifying.readers import Readers, read_pre, readers
from gossamer.attribution.verifying.replay import Seen, Stage
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import Tap
from gossamer.saes.crosscoder import Face, encode_read, parts_at, read_by
from gossamer.saes.rows import n_latents
from gossamer.saes.sets import decoded, earlier
from gossamer.splice import flat
from gossamer.views.page import write_page

KEEP = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the graph's latents that are kept."""

BATCH_TOKENS = 512
"""Tokens that run at once, about: masks are as wide as the SAEs."""


class Point(NamedTuple):
    """One circuit."""

    kept: int
    """Latents that are kept."""

    target: float
    """F of the kept ones, those of most influence first."""

    faithfulness: float
    """How much of the target they make up; NaN where the model and the empty circuit agree."""

    random: float
    """Mean faithfulness of as many latents of the graph, drawn at random."""


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness by how many latents are kept."""

    points: tuple[Point, ...]
    """Fewest first."""

    full: float
    """F of the model as it is."""

    empty: float
    """F with no latent kept."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """Model, prompt, target, ablation, errors, number of latents in the graph, random orders."""

    @property
    def sentence(self) -> str:
        """How many latents make up how much of the target."""
        best = next((p for p in self.points if p.faithfulness >= 0.8), self.points[-1])
        return (
            f"{best.kept} of {self.about.get('n_latents')} latents make up "
            f"{best.faithfulness:.0%} of the target; as many at random {best.random:.0%}."
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a line for each point."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise GossamerError(
                "to_dataframe needs the package pandas: pip install 'gossamer[notebook]'; "
                "or read the same numbers from points."
            ) from error
        return pandas.DataFrame(self.points, columns=list(Point._fields))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """A page that opens offline: the curve beside the random one, and a table."""
        said = [str(self.about[k]) for k in ("model", "prompt", "target") if self.about.get(k)]
        rows = [
            (f"{p.kept}", f"{p.target:.4g}", f"{p.faithfulness:.4g}", f"{p.random:.4g}")
            for p in self.points
        ]
        body = (
            f"<h1>{html.escape(self.sentence)}</h1>"
            f'<p class="soft">{html.escape(" · ".join(said))}</p>{_plot(self)}'
            + table("Faithfulness by latents kept", Point._fields, rows)
        )
        return write_page(path, page_of("Faithfulness", body))


def faithfulness(  # noqa: PLR0913  the public face; everything but the first three by name
    graph: Graph,
    model: Model,
    saes: Any,
    *,
    keep: Sequence[int | float] = KEEP,
    ablation: Literal["zero", "mean"] = "zero",
    means: Means | None = None,
    errors: Literal["kept", "ablated"] = "kept",
    n_random: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> FaithfulnessCurve:
    """Keep the latents of most influence, ablate all others, and measure what the graph explains.

    Args:
        graph: what `attribute` made.
        model: the model it was made with.
        saes: the SAEs it was made with; further ones are left out.
        keep: how many latents, or which shares of the graph's latents (numbers with a point).
        ablation: what stands for a latent that is not kept.
        means: of the latents (and errors), as `gossamer.means` gives them; needed for "mean".
        errors: "kept" at their clean values, or "ablated" as the latents are.
        n_random: random orders of the graph's latents that are averaged.
        seed: of the random orders.
        progress: show a bar on standard error.

    GossamerError when graph, model and SAEs do not belong together, or means lack a site.
    """
    _check(ablation, errors, means)
    stage = stage_of(graph, model, saes, error="frozen")
    if ablation == "mean":
        _check_means(stage, means, errors)
    latents = np.flatnonzero(graph.nodes.of_kind("latent"))
    counts = _counts(keep, len(latents))
    ranked = latents[np.argsort(-graph.influence()[latents], kind="stable")]
    generator = np.random.default_rng(seed)
    orders = [ranked, *(generator.permutation(latents) for _ in range(n_random))]
    with torch.no_grad():
        fill = _Fill(stage, means if ablation == "mean" else None, errors == "kept")
        circuits = [np.array([], int), *(order[:n] for order in orders for n in counts)]
        values = _targets(graph, fill, circuits, progress=progress)
        full = float(_full(graph, stage))
    empty, whole = float(values[0]), full - float(values[0])
    table = values[1:].reshape(len(orders), len(counts))
    shares = (table - empty) / whole if abs(whole) > 1e-12 else np.full(table.shape, math.nan)
    points = tuple(
        Point(
            n,
            float(table[0, i]),
            float(shares[0, i]),
            float(shares[1:, i].mean()) if n_random else math.nan,
        )
        for i, n in enumerate(counts)
    )
    about = {
        "model": graph.about.get("model", model.name),
        "prompt": "".join(graph.tokens),
        "target": graph.about.get("target"),
        "ablation": ablation,
        "errors": errors,
        "n_latents": len(latents),
        "n_random": n_random,
    }
    return FaithfulnessCurve(points, full, empty, about)


def _check(ablation: str, errors: str, means: Means | None) -> None:
    if ablation not in ("zero", "mean") or errors not in ("kept", "ablated"):
        raise GossamerError(
            'ablation is "zero" or "mean" and errors "kept" or "ablated", got '
            f"{ablation!r} and {errors!r}."
        )
    if (ablation == "mean") != (means is not None):
        raise GossamerError(
            'ablation="mean" and means= go together; take means with gossamer.means(model, corpus, '
            "[], saes)."
        )


def _check_means(stage: Stage, means: Means | None, errors: str) -> None:
    assert means is not None
    kinds = (means.latents,) if errors == "kept" else (means.latents, means.errors)
    missing = [site for site in stage.saes if any(site not in kind for kind in kinds)]
    if missing:
        raise SiteError(
            f"The means have nothing of the SAE at {missing[0]}; take them with "
            "gossamer.means(model, corpus, [], saes) of the same SAEs."
        )


def _counts(keep: Sequence[int | float], n_latents: int) -> list[int]:
    """How many latents each circuit keeps, each number once."""
    counts = []
    for each in keep:
        n = round(each * n_latents) if isinstance(each, float) and 0 <= each <= 1 else each
        if n != int(n) or not 0 <= n:
            raise GossamerError(
                f"keep holds numbers of latents or shares between 0.0 and 1.0, got {each}."
            )
        counts.append(min(int(n), n_latents))
    if not counts:
        raise GossamerError("keep is empty; name at least one number of latents.")
    return sorted(set(counts))


@dataclass(frozen=True, slots=True)
class _Fill:
    """What stands at spliced sites."""

    stage: Stage
    means: Means | None
    keeps_errors: bool

    def latents(self, site: str, x: Tensor, kept: Bool[Tensor, "rows pos d_sae"]) -> Tensor:
        """The kept latents, and what stands for the others."""
        sae = self.stage.saes[site]
        latents = self.clean(site) if isinstance(sae, Face) else sae.encode(x)
        instead = 0.0 if self.means is None else self.means.latents[site].to(x)
        return torch.where(kept, latents, instead)

    def spliced(self, site: str, x: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """Reconstruction from these latents, by the site of their SAE, and the error."""
        saes = self.stage.saes
        value = decoded(saes, site, latents, x)
        if self.keeps_errors:
            some = [site, *(sae.site_out for sae in earlier(saes, site))]
            clean = {each: self.clean(each) for each in some}
            x = self.before(saes[site].site_in)
            return value + self.before(site) - decoded(saes, site, clean, x)
        return value if self.means is None else value + self.means.errors[site].to(value)

    def clean(self, site: str) -> Tensor:
        """The latents of the clean run."""
        sae = self.stage.saes[site]
        return encode_read(sae, read_by(sae, self.before))

    def before(self, site: str) -> Tensor:
        """The clean value at a site, heads side by side."""
        return flat(self.stage.value(site))


@dataclass(frozen=True, slots=True)
class _Circuits:
    """Some circuits side by side."""

    fill: _Fill
    kept: Mapping[str, Bool[Tensor, "rows pos d_sae"]]
    wanted: frozenset[Seen]
    seen: dict[Seen, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)

    def visit(self, site: str, value: Tensor) -> Tensor:
        """Own SAE reads → splice → others read."""
        if Seen(site, True) in self.wanted:
            self.seen[Seen(site, True)] = flat(value)
        sae = self.fill.stage.saes.get(site)
        if sae is not None:
            x = flat(value) if sae.site_in == site else self.inputs[sae.site_in]
            self.latents[site] = self.fill.latents(site, x, self.kept[site])
            written = self.fill.spliced(site, x, self.latents)
            value = written.reshape(value.shape).to(value.dtype)
        self.inputs[site] = flat(value)
        if Seen(site, False) in self.wanted:
            self.seen[Seen(site, False)] = flat(value)
        return value


def _targets(
    graph: Graph, fill: _Fill, circuits: Sequence[Int[np.ndarray, "..."]], *, progress: bool
) -> Float[np.ndarray, " n_circuits"]:
    """F of each circuit."""
    stage = fill.stage
    groups = list(readers(graph.nodes, graph.nodes.targets, stage.clean, stage.saes))
    at_once = max(1, BATCH_TOKENS // stage.n)
    values = np.zeros(len(circuits))
    bar = tqdm(total=len(circuits), desc="faithfulness", unit=" runs", disable=not progress)
    with bar:
        for start in range(0, len(circuits), at_once):
            some = circuits[start : start + at_once]
            seen = _run(graph, fill, some, frozenset(group.place for group in groups))
            for group in groups:
                weights = torch.as_tensor(graph.nodes.weights[group.nodes])
                for row in range(len(some)):
                    read = _values(group, seen[group.place][row]).double().cpu()
                    values[start + row] += float(weights @ read)
            bar.update(len(some))
    return values


def _full(graph: Graph, stage: Stage) -> float:
    """F of the model as it is."""
    return sum(
        float(torch.as_tensor(graph.nodes.weights[group.nodes]) @ group.values.double().cpu())
        for group in readers(graph.nodes, graph.nodes.targets, stage.clean, stage.saes)
    )


def _values(group: Readers, seen: Float[Tensor, "pos width"]) -> Float[Tensor, " n"]:
    """What the readers read in one run."""
    x = seen[group.positions]
    if group.sae is None:
        return group.values + ((x - group.clean).to(group.rows) * group.rows).sum(1)
    return read_pre(group.sae, x)[0][torch.arange(len(x)), group.units]


def _run(
    graph: Graph,
    fill: _Fill,
    circuits: Sequence[Int[np.ndarray, "..."]],
    wanted: frozenset[Seen],
) -> dict[Seen, Tensor]:
    """One pass over some circuits."""
    stage, nodes = fill.stage, graph.nodes
    model = stage.clean.model
    kept: dict[str, Tensor] = {}
    for site, sae in stage.saes.items():
        width = n_latents(sae, flat(stage.value(sae.site_in))[0])
        mask = torch.zeros(len(circuits), stage.n, width, dtype=torch.bool)
        named = parts_at(site, stage.saes)[0].site_out
        place = nodes.sites.index(named) if named in nodes.sites else -1
        for row, circuit in enumerate(circuits):
            here = circuit[(nodes.site_of[circuit] == place) & (nodes.positions[circuit] < stage.n)]
            mask[row, nodes.positions[here].astype(int), nodes.units[here].astype(int)] = True
        kept[site] = mask.to(model.device)
    rows = _Circuits(fill, kept, wanted)
    sites = {*kept, *(sae.site_in for sae in stage.saes.values()), *(p.site for p in wanted)}
    taps: dict[str, Tap] = {site: partial(rows.visit, site) for site in sites}
    tokens = torch.tensor([list(stage.clean.ids[: stage.n])] * len(circuits), device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    model.forward(batch, taps, to_the_end=False)
    return rows.seen


def _plot(curve: FaithfulnessCurve) -> str:
    """Faithfulness over the number of latents, a point at each place of the list."""
    lines = {"latents of most influence": [p.faithfulness for p in curve.points]}
    lines["as many at random"] = [p.random for p in curve.points]
    known = [v for line in lines.values() for v in line if math.isfinite(v)]
    low, high = min([0.0, *known]), max([1.0, *known])
    width = 2 * SIZE
    step = (width - 2 * MARGIN) / max(len(curve.points) - 1, 1)

    def y(value: float) -> float:
        return MARGIN / 2 + (SIZE - 1.5 * MARGIN) * (high - value) / (high - low)

    drawn = ""
    for place, colour, (words, line) in zip(
        (MARGIN, MARGIN + 170), ("#1a7f5a", "#c2571a"), lines.items(), strict=True
    ):
        places = [(MARGIN + i * step, y(v)) for i, v in enumerate(line) if math.isfinite(v)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        drawn += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        drawn += f'<text x="{place}" y="12" style="fill:{colour}">{words}</text>'
    for value in (low, 0.0, 1.0, high):
        drawn += (
            f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        )
        drawn += (
            f'<line class="axis" x1="{MARGIN}" x2="{width - MARGIN}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/>'
        )
    for i, point in enumerate(curve.points):
        drawn += (
            f'<text x="{MARGIN + i * step:.1f}" y="{SIZE - 12}" text-anchor="middle">'
            f"{point.kept}</text>"
        )
    label = html.escape(curve.sentence)
    return f'<svg width="{width}" height="{SIZE}" role="img" aria-label="{label}">{drawn}</svg>'

"""The oracle of attribution graphs: every edge of a prompt at once, by autograd of the plain model.

    reads(σ)      pre-activations and logits as a function of one scale for each node, all of them 1
    A = ∂reads/∂σ at 1

The run is that of `plain_model.py`. Each node is a tensor that stands somewhere in it, σ times:

    at a spliced site    value = Σ σ·(latents, error, bias, remainder) + the live skip connection
    elsewhere            value + Σ (σ − 1)·(what no path carries)

so what comes before a spliced site reaches nothing behind it, and at σ = 1 the run is the clean
one. What no path carries is y − J·x, the bias of a module that is affine and the remainder of one
that is not, with x the nearest spliced site or residual stream before y, by one derivative of the
plain run along x. What is held is put in as the clean run's value. No row of an SAE and no adjoint
of a block appears anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gossamer.attribution.targets import Latents, LogitDifference, Logits
from tests.plain_analysis import plain_logits
from tests.plain_model import plain_run
from tests.tiny_saes import plain_active, plain_decode, plain_latents, plain_normalized, plain_pre

FINAL = "ln_final.hook_normalized"
"""Where logits are read."""

Values = Mapping[str, Tensor]
Replaced = dict[str, Callable[[Tensor], Tensor]]
Place = tuple[str, str]
"""A site, and "before" the splice there or "after" it."""

STREAMS = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post")
"""The residual stream."""

OUTPUTS = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")
"""Where modules write, and with them what no path carries."""

ATTENTION = ("ln1.hook_normalized", "attn.hook_z", "hook_attn_out")
MLP = ("ln2.hook_normalized", "mlp.hook_in", "mlp.hook_post", "hook_mlp_out")
"""Sites on the two ways beside the stream, in forward order; a splice there cuts the way."""


@dataclass(frozen=True)
class PlainGraph:
    """One prompt. Rows: active latents, then logits; columns: every node that writes."""

    model: Any
    """A Hugging Face model."""

    coders: Mapping[str, Any]
    """By the site each one writes."""

    ids: Sequence[int]
    """The prompt."""

    target: Any = field(default_factory=Logits)
    """Which logits to add to the rows."""

    hold: Sequence[str] = ("attention", "norms")
    """What is held; with "mlps" MLPs are."""

    kept: Sequence[str] | None = None
    """The latents that are nodes; others belong to their site's remainder. None: all."""

    def __post_init__(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    # The clean run

    @cached_property
    def clean(self) -> dict[str, Tensor]:
        """The value at every site."""
        return plain_run(self.model, self.ids)

    def x(self, coder: Any) -> Tensor:
        """(pos, d_in) what a coder reads."""
        return self.clean[coder.site_in].flatten(1)

    @cached_property
    def active(self) -> dict[str, list[tuple[int, int]]]:
        """(position, latent) of what is active, by the site that is written."""
        return {
            site: [(int(p), int(i)) for p, i in plain_active(coder, self.x(coder)).nonzero()]
            for site, coder in self.coders.items()
        }

    @cached_property
    def held(self) -> Replaced:
        """Constants at the sites that are held."""
        endings = {"attention": "hook_pattern", "norms": "hook_scale", "mlps": "hook_mlp_out"}
        wanted = tuple(endings[name] for name in self.hold)
        return {s: partial(_constant, v) for s, v in self.clean.items() if s.endswith(wanted)}

    def base(self, site: str) -> str:
        """The nearest spliced site or stream before a site: where its way starts."""
        block = "" if site == FINAL else ".".join(site.split(".")[:2])
        way = next((w for w in (ATTENTION, MLP) if site.endswith(w)), (FINAL,))
        earlier = list(self.clean)[: list(self.clean).index(site)]
        cuts = [s for s in self.coders if s.startswith(block) and s.endswith(way) and s in earlier]
        return max([*cuts, *(s for s in earlier if s.endswith(STREAMS))], key=earlier.index)

    def read_base(self, coder: Any) -> str:
        """Where the way to what a coder reads starts: there, if nodes or splices stand there."""
        site = coder.site_in
        here = site in self.coders and site != coder.site_out
        return site if here or site.endswith((*STREAMS, *OUTPUTS)) else self.base(site)

    def affine_rest(self, of: Callable[[Values], Tensor], base: str) -> Tensor:
        """y − J·x of y = of(values), x the value at `base`; what is held is."""
        one = torch.ones((), dtype=self.clean[base].dtype)

        def along(scale: Tensor) -> Tensor:
            return of(plain_run(self.model, self.ids, {**self.held, base: partial(_times, scale)}))

        value, linear = _along(along, one, one)
        return value - linear

    # Columns

    @cached_property
    def leaves(self) -> dict[str, dict[Place, Tensor]]:
        """What each node adds, by place, as a value of that site which is 0 elsewhere."""
        found: dict[str, dict[Place, Tensor]] = {}
        for p, token in enumerate(self.ids):
            self._add(found, f"hook_embed/{token}", ("hook_embed", "before"), p)
            if "hook_pos_embed" in self.clean:
                self._add(found, f"hook_pos_embed/{p}", ("hook_pos_embed", "before"), p)
        for site in self.clean:
            if site.endswith(OUTPUTS):
                self._module(found, site)
            if site in self.coders:
                self._coder(found, self.coders[site])
        return found

    def _add(
        self, found: dict, name: str, place: Place, p: int, vector: Tensor | None = None
    ) -> None:
        """One more tensor of the node `name`@p: `vector`, or the value at the site."""
        whole = self.clean[place[0]]
        alone = torch.zeros_like(whole)
        alone[p] = whole[p] if vector is None else vector.reshape(whole[p].shape)
        found.setdefault(f"{name}@{p}", {})[place] = alone

    def _module(self, found: dict, site: str) -> None:
        """What attention or an MLP adds that no path carries, where anything reads it."""
        writer, attends = self.coders.get(site), not site.endswith("hook_mlp_out")
        if site.endswith("hook_z") and writer is None:
            return  # part of what hook_attn_out gets
        if writer is not None and writer.site_in != site:
            return  # a transcoder puts itself in place of what the module gives
        rest = self.affine_rest(lambda values: values[site], self.base(site))
        affine = attends and {"attention", "norms"} <= set(self.hold)
        module = ".".join(site.split(".")[:2]) + (".attn" if attends else ".mlp")
        for p in range(len(self.ids)):
            name = f"{module}/{'bias' if affine else 'remainder'}"
            self._add(found, name, (site, "before"), p, rest[p])

    def _coder(self, found: dict, coder: Any) -> None:
        """Latents, error, bias and the remainder of one splice."""
        site, x = coder.site_out, self.x(coder)
        place = (site, "after")
        latents = plain_latents(coder, x)
        decoded, y = plain_decode(coder, latents, x), self.clean[site].flatten(1)
        bias = torch.zeros_like(y)
        if hasattr(coder, "b_dec"):
            bias = bias + coder.b_dec * torch.as_tensor(plain_normalized(coder, x)[1])
        rest = decoded - bias - self.skip(coder, x) + self.skip_rests.get(site, 0)
        many = latents.expand(len(self.rows[site]), *latents.shape)
        alone = torch.zeros_like(many)
        for number, (p, i) in enumerate(self.rows[site]):
            alone[number, p, i] = latents[p, i]
        _, added = _along(lambda f: plain_decode(coder, f, x), many, alone)
        rest = rest - added.sum(0)
        for number, (p, i) in enumerate(self.rows[site]):
            self._add(found, f"{site}/{i}", place, p, added[number, p])
        for j, later in enumerate(getattr(coder, "sites_later", ())):
            left = latents.clone()
            for p, i in self.rows[site]:
                left[p, i] = 0
                vector = latents[p, i] * coder.W_later[i, j]
                self._add(found, f"{site}/{i}", (later, "after"), p, vector)
            for p in range(len(self.ids)):
                vector = left[p] @ coder.W_later[:, j]
                self._add(found, f"{site}/remainder", (later, "after"), p, vector)
        y = y - self.from_before(site)
        for p in range(len(self.ids)):
            self._add(found, f"{site}/error", place, p, (y - decoded)[p])
            self._add(found, f"{site}/bias", place, p, bias[p])
            self._add(found, f"{site}/remainder", place, p, rest[p])

    def from_before(self, site: str) -> Tensor:
        """(pos, d_out) what latents of other layers of a cross-layer transcoder write at a site."""
        total = torch.zeros_like(self.clean[site].flatten(1))
        for coder in self.coders.values():
            for j, later in enumerate(getattr(coder, "sites_later", ())):
                if later == site:
                    total = total + plain_latents(coder, self.x(coder)) @ coder.W_later[:, j]
        return total

    def skip(self, coder: Any, x: Tensor) -> Tensor:
        """(pos, d_out) of the skip connection, 0 without one."""
        weight = getattr(coder, "W_skip", None)
        if weight is None:
            return torch.zeros_like(self.clean[coder.site_out].flatten(1))
        return x @ weight.T

    @cached_property
    def skip_rests(self) -> dict[str, Tensor]:
        """What each skip connection carries from nobody: the bias of the norm before it."""
        return {
            site: self.affine_rest(
                lambda values, c=coder: self.skip(c, values[c.site_in].flatten(1)),
                self.read_base(coder),
            )
            for site, coder in self.coders.items()
            if getattr(coder, "W_skip", None) is not None
        }

    # Rows

    @cached_property
    def rows(self) -> dict[str, list[tuple[int, int]]]:
        """(position, latent) of the latents that are nodes, by the site that is written."""
        return {
            site: [(p, i) for p, i in pairs if self.kept is None or f"{site}/{i}@{p}" in self.kept]
            for site, pairs in self.active.items()
        }

    @cached_property
    def targets(self) -> list[str]:
        """Ids of the rows."""
        latents = [f"{site}/{i}@{p}" for site, pairs in self.rows.items() for p, i in pairs]
        if isinstance(self.target, Latents):
            return latents
        position, to = self.target.position % len(self.ids), self.target
        if isinstance(to, LogitDifference):
            return [*latents, f"logits/{to.token}-{to.distractor}@{position}"]
        return [*latents, *(f"logits/{token}@{position}" for token in self.logits)]

    @cached_property
    def logits(self) -> dict[int, float]:
        """Probability of each logit: of those named, or the fewest that reach 0.95, 10 at most."""
        probability = self.clean["logits"][self.target.position].softmax(-1)
        order = probability.argsort(descending=True).tolist()
        named: Any = self.target.tokens
        if named is None and self.target.top is not None:
            named = order[: self.target.top]
        if named is None:
            mass = 0.95 if self.target.mass is None else self.target.mass
            named, total = [], 0.0
            while total < mass and (self.target.mass is not None or len(named) < 10):
                named.append(order[len(named)])
                total += float(probability[named[-1]])
        return {int(token): float(probability[token]) for token in named}

    def read(self, site: str, x: Tensor) -> Tensor:
        """The rows of one SAE, from what it reads."""
        pairs = self.rows[site]
        pre = plain_pre(self.coders[site], x)
        return pre[[p for p, _ in pairs], [i for _, i in pairs]]

    def score(self, values: Values) -> Tensor:
        """The rows of logits."""
        if isinstance(self.target, Latents):
            return torch.zeros(0, dtype=torch.float64)
        logits = plain_logits(self.model, values[FINAL][self.target.position])
        if isinstance(self.target, LogitDifference):
            pair: Any = (self.target.token, self.target.distractor)
            return (logits[pair[0]] - logits[pair[1]])[None]
        return logits[list(self.logits)] - logits.mean()

    @cached_property
    def constants(self) -> Tensor:
        """(n_targets,) of each row's number, what is no node's."""
        found = [
            self.affine_rest(
                lambda values, c=coder: self.read(c.site_out, values[c.site_in].flatten(1)),
                self.read_base(coder),
            )
            for coder in self.coders.values()
        ]
        return torch.cat([*found, self.affine_rest(self.score, self.base(FINAL))])

    # Runs

    @cached_property
    def stacks(self) -> dict[Place, tuple[list[int], Tensor]]:
        """At each place, which columns stand there and what they add."""
        found: dict[Place, list[tuple[int, Tensor]]] = {}
        for number, at in enumerate(self.leaves.values()):
            for place, value in at.items():
                found.setdefault(place, []).append((number, value))
        return {
            place: ([number for number, _ in here], torch.stack([value for _, value in here]))
            for place, here in found.items()
        }

    def at(self, scales: Tensor, *, linear: bool = False) -> Tensor:
        """Every row's number with each column's node scaled; `linear`: MLPs are straight lines."""
        inputs: dict[str, Tensor] = {}
        values = self.values_at(scales, inputs, linear=linear)
        found = [self.read(site, inputs[site]) for site in self.coders]
        return torch.cat([*found, self.score(values)])

    def values_at(
        self, scales: Tensor, inputs: dict[str, Tensor] | None = None, *, linear: bool = False
    ) -> dict[str, Tensor]:
        """The value at each site with nodes scaled; `inputs` gets what each coder reads."""
        inputs = {} if inputs is None else inputs
        lives: dict[str, Tensor] = {}

        def visit(site: str, value: Tensor) -> Tensor:
            value = self.held[site](value) if site in self.held else value
            if linear and site in self.straight:
                base, slope = self.straight[site]
                value = self.clean[site] + torch.tensordot(slope, lives[base] - self.clean[base], 2)
            if (site, "before") in self.stacks:
                columns, added = self.stacks[site, "before"]
                value = value + torch.tensordot(scales[columns] - 1, added, 1)
            writer = self.coders.get(site)
            if writer is not None:
                if writer.site_in == site:
                    inputs[site] = value.flatten(1)
                columns, added = self.stacks[site, "after"]
                live = self.skip(writer, inputs[site]) - self.skip_rests.get(site, 0)
                value = torch.tensordot(scales[columns], added, 1) + live.reshape(value.shape)
            for reader in self.coders.values():
                if reader.site_in == site and reader is not writer:
                    inputs[reader.site_out] = value.flatten(1)
            lives[site] = value
            return value

        replaced = {site: partial(visit, site) for site in self.clean}
        return plain_run(self.model, self.ids, replaced)

    @cached_property
    def straight(self) -> dict[str, tuple[str, Tensor]]:
        """Each MLP's (base, slope at the clean run), by where it writes."""
        found = {}
        for site, value in self.clean.items():
            if not site.endswith("hook_mlp_out") or site in self.held:
                continue
            base = self.base(site)

            def output(x: Tensor, base: str = base, site: str = site) -> Tensor:
                replaced = {**self.held, base: partial(_constant, x)}
                return plain_run(self.model, self.ids, replaced)[site]

            slope = torch.autograd.functional.jacobian(output, self.clean[base], vectorize=True)
            assert isinstance(slope, Tensor) and slope.shape[: value.ndim] == value.shape
            found[site] = (base, slope)
        return found

    # What graphs must equal

    @cached_property
    def reads(self) -> Tensor:
        """(n_targets,) in the clean run."""
        return self.at(torch.ones(len(self.leaves), dtype=torch.float64))

    @cached_property
    def edges(self) -> Tensor:
        """(n_targets, n_columns)."""
        return self.integrated(1, last=True)

    def scales_at(self, alpha: float) -> Tensor:
        """The straight path to the clean run, on which biases and remainders stay whole."""
        whole = [name.rsplit("/", 1)[1].startswith(("bias", "remainder")) for name in self.leaves]
        return torch.where(torch.tensor(whole), 1.0, torch.tensor(alpha, dtype=torch.float64))

    def integrated(self, steps: int, *, last: bool = False) -> Tensor:
        """(n_targets, n_columns) of the mean edge over the path's midpoints, or at its end."""
        total = torch.zeros(len(self.targets), len(self.leaves), dtype=torch.float64)
        for step in range(steps):
            scales = self.scales_at(1.0 if last else (step + 0.5) / steps).requires_grad_()
            values = self.at(scales)
            units = torch.eye(len(values), dtype=values.dtype)
            total += torch.autograd.grad(values, scales, units, is_grads_batched=True)[0]
        return total / steps

    @torch.no_grad()
    def difference(self, node: str, step: float, *, linear: bool = False) -> Tensor:
        """(n_targets,) change per unit of one node's scale, by runs at 1 ± step."""
        up, down = torch.ones(2, len(self.leaves), dtype=torch.float64)
        number = list(self.leaves).index(node)
        up[number] += step
        down[number] -= step
        return (self.at(up, linear=linear) - self.at(down, linear=linear)) / (2 * step)


def _along(of: Callable[[Tensor], Tensor], x: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """(of(x), its derivative along `way`)."""
    value, slope = torch.autograd.functional.jvp(of, x, way)
    assert isinstance(value, Tensor) and isinstance(slope, Tensor)
    return value, slope


def _constant(value: Tensor, _: Tensor) -> Tensor:
    return value


def _times(scale: Tensor, value: Tensor) -> Tensor:
    return scale * value

"""The oracle of `verify`: one dense function over the plain model, differentiated and changed.

    answer(α) = what every target reads, with source node s at α_s times its clean value

α = 1 is the clean run. Spliced sites hold Σ of what their nodes write (or follow the model, in
total runs), patterns and scales are constants where they are held. The Jacobian at α = 1 is the
matrix of edges; answer(1) − answer(1 with α_s less a share) is what the share's absence does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import from_dense
from gossamer.models.model import Model
from gossamer.sites import parse_site
from tests.plain_model import kind_of, plain_run
from tests.tiny_saes import plain_active, plain_decode, plain_latents, plain_pre

Source = tuple[str, str, int, int]
"""(site, kind, unit, position)."""


Change = Callable[[Tensor], Tensor]
"""From a factor on a node to what that adds where it writes."""


def _scaled(row: Tensor, factor: Tensor) -> Tensor:
    return (factor - 1) * row


def _decoded(coder: Any, latents: Tensor, x: Tensor, latent: int, factor: Tensor) -> Tensor:
    only = F.one_hot(torch.tensor(latent), len(latents)) * latents
    changed = latents + (factor - 1) * only
    both = (plain_decode(coder, f[None], x[None])[0] for f in (changed, latents))
    return next(both) - next(both)


@dataclass(frozen=True)
class Plain:
    """One prompt with its nodes."""

    model: Model
    coders: Mapping[str, Any]
    ids: Sequence[int]
    logits: Sequence[tuple[int, int]]
    """(token, distractor or −1) of logit targets at the last position."""

    hold: tuple[str, ...] = ("attention", "norms")

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """The clean run."""
        with torch.no_grad():
            return plain_run(self.model.language_model, self.ids)

    @cached_property
    def sources(self) -> list[tuple[Source, float, Change]]:
        """(node, value, what a factor on it adds), in forward order of sites."""
        values, found = self.values, []
        for site in ("hook_embed", "hook_pos_embed"):
            kind = "token" if site == "hook_embed" else "position"
            for p in range(len(self.ids) if site in values else 0):
                unit = self.ids[p] if kind == "token" else p
                found.append(((site, kind, unit, p), 1.0, partial(_scaled, values[site][p])))
        for site in sorted(self.coders, key=lambda s: parse_site(s).order):
            coder = self.coders[site]
            x, y = values[coder.site_in].flatten(1), values[site].flatten(1)
            latents = plain_latents(coder, x)
            for p, i in plain_active(coder, x).nonzero().tolist():
                change = partial(_decoded, coder, latents[p], x[p], i)
                found.append(((site, "latent", i, p), float(latents[p, i]), change))
            error = y - plain_decode(coder, latents, x)
            found += [
                ((site, "error", -1, p), 1.0, partial(_scaled, error[p])) for p in range(len(x))
            ]
        return found

    def answer(
        self, alpha: Tensor, *, way: str, frozen: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what every latent of every SAE, then every logit target, reads; what each SAE reads)."""
        clean = self.values
        moved: dict[str, Tensor] = {}
        for factor, ((site, _, _, p), _, change) in zip(alpha, self.sources, strict=True):
            if type(factor) is Tensor and not factor.requires_grad and float(factor) == 1:
                continue
            at = F.one_hot(torch.tensor(p), len(self.ids))[:, None].to(factor)
            moved[site] = moved.get(site, 0) + at * change(factor)
        reads: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}

        def replaced(site: str, value: Tensor) -> Tensor:
            coder = self.coders.get(site)
            shape = value.shape
            if coder is not None:
                reads[site] = (value if coder.site_in == site else after[coder.site_in]).flatten(1)
                value = self._spliced(coder, reads[site], value, way + "-frozen" * frozen)
            if site in moved:
                value = value + moved[site].reshape(shape)
            after[site] = value
            return value

        places = {*moved, *self.coders, *(c.site_in for c in self.coders.values())}
        replace = {site: partial(replaced, site) for site in places}
        endings = {"attention": "hook_pattern", "norms": "hook_scale"}
        held = {"held": self.hold, "scales": tuple({"norms"} & set(self.hold))}.get(way, ())
        for site, value in clean.items():
            if site.endswith(tuple(endings[name] for name in held)):
                replace[site] = lambda _, value=value: value
        run = plain_run(self.model.language_model, self.ids, replace)
        final = run["ln_final.hook_normalized"]
        return torch.cat([self._read(reads), self._scores(final)]), reads

    def _spliced(self, coder: Any, x: Tensor, value: Tensor, way: str) -> Tensor:
        """What stands at a site after the splice of its SAE."""
        clean, before = self.values[coder.site_out], self.values[coder.site_in].flatten(1)
        if way == "total":
            return value
        if way == "total-frozen":
            own = plain_decode(coder, plain_latents(coder, x), x)
            old = plain_decode(coder, plain_latents(coder, before), before)
            return clean + (own - old).reshape(value.shape)
        if getattr(coder, "W_skip", None) is None:
            return clean
        return clean + ((x - before) @ coder.W_skip.T).reshape(value.shape)

    def _read(self, reads: Mapping[str, Tensor]) -> Tensor:
        pre = [plain_pre(coder, reads[site]).flatten() for site, coder in self.coders.items()]
        return torch.cat(pre) if pre else torch.zeros(0)

    def _scores(self, normalized: Tensor) -> Tensor:
        model = self.model.language_model
        final = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
        norm = model.get_submodule(final.get(kind_of(model), "model.norm"))
        gain = norm.weight + (1.0 if kind_of(model) == "gemma" else 0.0)
        hidden = normalized[-1] * gain + (norm.bias if hasattr(norm, "bias") else 0)
        logits = model.get_output_embeddings().weight @ hidden
        scores = [
            logits[token] - (logits.mean() if other < 0 else logits[other])
            for token, other in self.logits
        ]
        return torch.stack(scores) if scores else logits[:0]

    def places(self) -> list[tuple[Source, int]]:
        """Target nodes, and where each stands in an answer."""
        found, start, values = [], 0, self.values
        for site, coder in self.coders.items():
            active = plain_active(coder, values[coder.site_in].flatten(1))
            width = active.shape[1]
            found += [
                ((site, "latent", i, p), start + p * width + i)
                for p, i in active.nonzero().tolist()
            ]
            start += active.numel()
        last = len(self.ids) - 1
        for n, (token, _) in enumerate(self.logits):
            found.append((("logits", "logit", token, last), start + n))
        return found

    @torch.no_grad()
    def graph(self) -> Graph:
        """The graph whose edges are the Jacobian's entries."""
        sources, targets = self.sources, self.places()
        ones = torch.ones(len(sources), dtype=self.model.dtype)

        def reads(alpha: Tensor) -> Tensor:
            return self.answer(alpha, way="held")[0][[place for _, place in targets]]

        dense = torch.func.jacrev(reads)(ones)
        base = reads(ones)
        names = [name for name, _, _ in sources] + [n for n, _ in targets if n[1] == "logit"]
        number = {name: i for i, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)))
        pre = np.full(len(names), np.nan)
        for row, (name, _) in enumerate(targets):
            matrix[number[name], : len(sources)] = dense[row].numpy()
            pre[number[name]] = float(base[row])
        sites = tuple(dict.fromkeys(name[0] for name in names))
        last = [other for _, other in self.logits]
        is_logit = np.array([name[1] == "logit" for name in names])
        values = np.array([v for _, v, _ in sources] + [0.0] * len(last))
        nodes = Nodes(
            sites=sites,
            kinds=np.array([KINDS.index(name[1]) for name in names], np.int8),
            site_of=np.array([sites.index(name[0]) for name in names], np.int32),
            units=np.array([name[2] for name in names], np.int64),
            positions=np.array([name[3] for name in names], np.int32),
            values=np.where(is_logit, pre, values),
            weights=np.where(is_logit, 1.0 / max(len(last), 1), 0.0),
            reads=pre,
            constants=np.full(len(names), np.nan),
            residuals=np.full(len(names), np.nan),
            distractors=np.array([-1] * len(sources) + last, np.int64),
            labels=tuple("" for _ in names),
        )
        about = {"model": self.model.name, "hold": list(self.hold), "effects": "direct"}
        about["saes"] = {site: "" for site in self.coders}
        tokens = tuple(f"<{token}>" for token in self.ids)
        return Graph(nodes, from_dense(matrix), tokens, tuple(self.ids), about)

"""The oracle of node tables: one prompt on the plain model, with every site a point of its graph.

    PlainAnalysis(model, ids, number, read, …)     number: the value at every site → s

`write(node)` is what a node adds to the residual stream, from the Hugging Face modules alone;
`direct(node)` = write · ∂s/∂(the stream at `read`), `total(node)` = activation · ∂s/∂activation,
both by autograd of the plain run in which every SAE is spliced in. `constant()` is s with that
stream at zero and every scale held, which is the bias of an affine s.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.sites import NodeId, parse_node
from tests.plain_model import blocks_of, kind_of, plain_run
from tests.tiny_saes import plain_decode, plain_latents, plain_normalized, tiny_sae

Values = Mapping[str, Tensor]
Number = Callable[[Values], Tensor]

OUTPUTS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "gemma": ("self_attn.o_proj", "mlp.down_proj"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
}
"""A block's two modules that write into the stream."""

POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Gemma's norms behind them."""

FINAL = "ln_final.hook_normalized"
"""Where logits are read."""

_parsed = functools.cache(parse_node)

IDS = [1, 5, 7, 3, 9, 11]
"""A prompt longer than the windows of Mistral and Gemma."""

ROTATION = ("relu", "topk", "jumprelu", "gated", "topk_signed")


def coders_at(model: Any, sites: Iterable[str], shift: int = 0) -> list[Any]:
    """One tiny SAE at each site, architectures in turn from the shift-th on. An SAE at mlp.hook_in
    is a transcoder with a skip connection; one at hook_resid_post normalizes as a LayerNorm."""
    found = []
    for number, site in enumerate(sites):
        options: dict[str, Any] = {}
        if site.endswith("mlp.hook_in"):
            options = {"site_out": site.replace("mlp.hook_in", "hook_mlp_out"), "skip": True}
        if site.endswith("resid_post"):
            options = {"normalization": "layer_norm"}
        architecture = ROTATION[(number + shift) % len(ROTATION)]
        found.append(tiny_sae(architecture, site, model.width(site), seed=number, **options))
    return found


@functools.cache
def output_of(model: Any, layer: int, part: str) -> tuple[Tensor, Tensor]:
    """(what one unit of each coordinate of a module's input writes, its bias), by calling it."""
    path = OUTPUTS[kind_of(model)][part == "mlp"]
    module = blocks_of(model)[layer].get_submodule(path)
    width = module.weight.shape[0 if kind_of(model) == "gpt2" else 1]
    with torch.no_grad():
        bias = module(torch.zeros(1, width, dtype=module.weight.dtype))[0]
        return module(torch.eye(width, dtype=module.weight.dtype)) - bias, bias


def plain_logits(model: Any, normalized: Tensor) -> Tensor:
    """Scores before any soft-cap, from what the final norm divided by its scale."""
    path = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
    norm = model.get_submodule(path.get(kind_of(model), "model.norm"))
    gain = norm.weight + (1.0 if kind_of(model) == "gemma" else 0.0)
    return model.get_output_embeddings()(normalized * gain + getattr(norm, "bias", 0))


def logit_difference(model: Any, plus: int, minus: int, position: int = -1) -> Number:
    """Of two tokens."""

    def number(values: Values) -> Tensor:
        logits = plain_logits(model, values[FINAL][position])
        return logits[plus] - logits[minus]

    return number


class PlainAnalysis:
    """One number of one prompt; `coders` by the site each one writes."""

    def __init__(
        self,
        model: Any,
        ids: Sequence[int],
        number: Number,
        read: str,
        coders: Sequence[Any] = (),
        hold: Sequence[str] = ("norms",),
        error: str = "attached",
    ) -> None:
        self.model, self.ids, self.number, self.read = model, ids, number, read
        self.coders = {coder.site_out: coder for coder in coders}
        self.latents: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.error = error
        for parameter in model.parameters():  # other oracles leave shared models frozen
            parameter.requires_grad_(True)
        self.values = plain_run(model, ids, self._replaced(hold))
        self.s = number(self.values)
        last = list(self.values).index(read)
        points = {**self.values, **{f"latents {k}": v for k, v in self.latents.items()}}
        points = {k: v for k, v in points.items() if v.requires_grad}
        found = torch.autograd.grad(self.s, list(points.values()), allow_unused=True)
        self.gradients = {
            k: torch.zeros_like(points[k]) if g is None else g
            for k, g in zip(points, found, strict=True)
        }
        self.upstream_sites = list(self.values)[: last + 1]

    def _replaced(self, hold: Sequence[str]) -> dict[str, Callable[[Tensor], Tensor]]:
        """What stands at each site: scales and patterns held, SAEs spliced in."""
        functions: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        for site in plain_run(self.model, self.ids):
            if site.endswith("hook_scale") and "norms" in hold:
                functions[site] = [Tensor.detach]
            if site.endswith("hook_pattern") and "attention" in hold:
                functions[site] = [lambda value: value.detach().requires_grad_()]
        for site, coder in self.coders.items():
            functions.setdefault(coder.site_in, []).append(self._reader(site))
            functions.setdefault(site, []).append(self._splice(coder))
        return {site: _in_turn(some) for site, some in functions.items()}

    def _reader(self, site: str) -> Callable[[Tensor], Tensor]:
        def read(value: Tensor) -> Tensor:
            self.inputs[site] = value.flatten(1)
            return value

        return read

    def _splice(self, coder: Any) -> Callable[[Tensor], Tensor]:
        def splice(value: Tensor) -> Tensor:
            x = self.inputs[coder.site_out]
            latents = plain_latents(coder, x)
            self.latents[coder.site_out] = point = latents.view_as(latents)
            missed = value.flatten(1) - plain_decode(coder, latents, x)
            missed = missed if self.error == "attached" else missed.detach()
            missed = 0 if self.error == "dropped" else missed
            return (plain_decode(coder, point, x) + missed).reshape(value.shape)

        return splice

    @functools.cached_property
    def scales(self) -> dict[str, Tensor]:
        """Every norm's scale in this run."""
        return {s: v.detach() for s, v in self.values.items() if s.endswith("hook_scale")}

    @torch.no_grad()
    def constant(self) -> float:
        """s with the stream it is read from at zero, scales held."""
        held = {s: (lambda _, v=v: v) for s, v in self.scales.items()}
        return float(self.number(plain_run(self.model, self.ids, {**held, self.read: _zeros})))

    @torch.no_grad()
    def direct(self, node: str) -> float:
        """What a node writes · ∂s/∂r."""
        return float(self.write(node) @ self.gradients[self.read][_parsed(node).position])

    @torch.no_grad()
    def total(self, node: str) -> float:
        """a · ∂s/∂a, by the gradient of what the node itself is."""
        at, parsed = self.gradients, _parsed(node)
        t, site, unit = parsed.position, parsed.site, parsed.unit
        if isinstance(unit, int) and site in self.coders:
            return float(self.latents[site][t, unit] * at[f"latents {site}"][t, unit])
        if parsed.key_position is not None:
            pattern = site.replace("hook_z", "hook_pattern")
            where = (unit, t, parsed.key_position)
            return float(self.values[pattern][where] * at[pattern][where])
        gradient = at[self._vector_site(parsed)][t]
        return float(self.vector(parsed) @ gradient.flatten())

    @torch.no_grad()
    def activation(self, node: str) -> float | None:
        """What the node itself is; None for vectors."""
        parsed = _parsed(node)
        t, site, unit = parsed.position, parsed.site, parsed.unit
        if parsed.key_position is not None:
            pattern = self.values[site.replace("hook_z", "hook_pattern")]
            return float(pattern[int(unit), t, parsed.key_position])
        if site in ("hook_embed", "hook_pos_embed"):
            return 1.0
        if isinstance(unit, str) or site.endswith("attn.hook_z") and site not in self.coders:
            return None
        return float((self.latents if site in self.coders else self.values)[site][t, unit])

    def _vector_site(self, node: NodeId) -> str:
        """Where a node's vector stands: of a module's bias, its output."""
        for part in ("attn", "mlp"):
            if node.site.endswith(f".{part}"):
                return node.site.replace(f".{part}", f".hook_{part}_out")
        return node.site

    @torch.no_grad()
    def vector(self, node: NodeId) -> Tensor:
        """What a node adds at its own site and position, heads side by side."""
        t, site, unit = node.position, node.site, node.unit
        if site in ("hook_embed", "hook_pos_embed"):
            return self.values[site][t]
        if self._vector_site(node) != site:  # a module's bias
            _, layer, part = site.split(".")
            return self.normed(output_of(self.model, int(layer), part)[1], int(layer), part, t)
        if site in self.coders:
            return self._of_coder(site, t, unit)
        alone = torch.zeros_like(self.values[site][t])
        alone[unit] = self.values[site][t, unit]
        if node.key_position is not None:
            v = self.values[site.replace("hook_z", "hook_v")][node.key_position]
            alone[unit] = v[int(unit) // (len(alone) // len(v))] * self.activation(str(node))
        return alone.flatten()

    def _of_coder(self, site: str, t: int, unit: int | str) -> Tensor:
        """A latent's f · ∂decode/∂f, or a piece of the splice beside the latents."""
        coder, x, f = self.coders[site], self.inputs[site][t][None], self.latents[site][t][None]
        if isinstance(unit, int):
            one = torch.zeros_like(f)
            one[0, unit] = f[0, unit]
            with torch.enable_grad():
                return torch.autograd.functional.jvp(lambda f: plain_decode(coder, f, x), f, one)[
                    1
                ][0]
        decoded = plain_decode(coder, f, x)[0]
        if unit == "error":
            return self.values[site][t].flatten() - decoded
        bias = torch.zeros_like(decoded)
        if hasattr(coder, "b_dec"):
            bias = coder.b_dec * torch.as_tensor(plain_normalized(coder, x)[1]).reshape(-1)
        if unit == "bias":
            return bias
        assert unit == "remainder"
        active = f[0].nonzero()[:, 0].tolist()
        return decoded - bias - sum(self._of_coder(site, t, m) for m in active)

    @torch.no_grad()
    def write(self, node: str) -> Tensor:
        """What a node adds to the residual stream."""
        parsed = _parsed(node)
        vector, kind = self.vector(parsed).detach(), parsed.site.split(".", 2)[-1]
        part = {"attn.hook_z": "attn", "mlp.hook_post": "mlp"}.get(kind)
        if part is None:
            return vector
        layer = int(parsed.site.split(".")[1])
        moved = vector @ output_of(self.model, layer, part)[0]
        return self.normed(moved, layer, part, parsed.position)

    def normed(self, vector: Tensor, layer: int, part: str, t: int) -> Tensor:
        """Through Gemma's post-norm with its scale held."""
        if kind_of(self.model) != "gemma":
            return vector
        norm = blocks_of(self.model)[layer].get_submodule(POST_NORMS[part == "mlp"])
        name = {"attn": "ln1_post", "mlp": "ln2_post"}[part]
        return vector / self.scales[f"blocks.{layer}.{name}.hook_scale"][t] * (1 + norm.weight)


def _zeros(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def _in_turn(functions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def all_of_them(value: Tensor) -> Tensor:
        for function in functions:
            value = function(value)
        return value

    return all_of_them


def close(got: Any, expected: Any) -> None:
    """Equal to float64's precision."""
    got, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def check_table(plain: PlainAnalysis, analysis: Any) -> None:
    """Every number of a table that lists all rows, and what its rows write and add up to."""
    close(analysis.value, plain.s)
    nodes = [row for row in analysis.rows if row.write_norm is not None]
    close([row.direct for row in nodes], [plain.direct(row.node) for row in nodes])
    close([row.total for row in nodes], [plain.total(row.node) for row in nodes])
    writes = [plain.write(row.node) for row in nodes]
    close([row.write_norm for row in nodes], [float(w.norm()) for w in writes])
    for row in nodes:
        expected = plain.activation(row.node)
        assert (row.activation is None) == (expected is None)
        assert expected is None or abs(row.activation - expected) < 1e-10
    check_sums(plain, analysis)


def check_sums(plain: PlainAnalysis, analysis: Any, *, affine: bool = True) -> None:
    """Over the cut: writes make up the stream, the constant is s at a stream of zero, and direct
    effects with it are s."""
    (constant,) = [row for row in analysis.rows if row.write_norm is None]
    nodes = [row for row in analysis.rows if row.write_norm is not None and row.in_cut]
    assert len({row.node for row in analysis.rows}) == len(analysis.rows)
    gradient, stream = plain.gradients[plain.read], plain.values[plain.read].detach()
    for t in gradient.abs().sum(1).nonzero()[:, 0].tolist():
        close(sum(plain.write(row.node) for row in nodes if row.position == t), stream[t])
    assert constant.kind == ("bias" if affine else "remainder")
    if affine:
        close(constant.direct, plain.constant())
    everything = sum(row.direct for row in nodes) + constant.direct
    close(everything, plain.s)
    direct = next(each for each in analysis.sums if each.column == "direct")
    assert direct.adds_up and "the value" in direct.sentence
    close(direct.shown, everything)
    assert abs(direct.not_shown) < 1e-9

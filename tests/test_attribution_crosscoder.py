"""Crosscoders in edges: laws 3 and 4 against one dense function over the plain model.

    h(f) = what the target reads when dec_s(f) + error_s stands at every site s the source writes

with the errors constants: its Jacobian by torch.func.jacrev, and differences of the same function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attribution.edges import Edges, edges
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.attribution.verify import measure
from gossamer.edits import Ablate, Set
from gossamer.errors import GossamerError, SiteError
from gossamer.saes import Crosscoder, TopK
from gossamer.sites import parse_node
from gossamer.splice import run
from tests.plain_model import plain_run
from tests.tiny_models import tiny_model
from tests.tiny_saes import plain_active, plain_decode, plain_pre, tiny_sae

IDS = [3, 1, 4, 15, 9, 2]
PRE, Z, LATE = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"
OUT, NEXT, END = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"
MID = "blocks.1.hook_resid_mid"
LOGITS, DIFFERENCE = Logits(tokens=[2, 9, 30], position=-2), LogitDifference(3, 8)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
N = 12


def crosscoder(model: Any, *sites: str, seed: int = 0) -> Crosscoder:
    def normal(*shape: int, seed: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()

    widths = {site: model.width(site) for site in sites}
    some = list(enumerate(widths.items(), 100 * seed))
    return Crosscoder(
        W_enc={s: normal(N, w, seed=i) / w**0.5 for i, (s, w) in some},
        b_enc=0.1 * normal(N, seed=7 + seed),
        W_dec={s: normal(N, w, seed=10 + i) / N**0.5 for i, (s, w) in some},
        b_dec={s: 0.2 * normal(w, seed=20 + i) for i, (s, w) in some},
        selection=TopK(3),
    )


class Dictionary:
    """Any dictionary as an SAE over sites side by side, cut up again."""

    def __init__(self, model: Any, coder: Any) -> None:
        whole = isinstance(coder, Crosscoder)
        self.sae = coder.joint if whole else coder
        self.reads = list(coder.reads) if whole else [coder.site_in]
        self.writes = list(coder.writes) if whole else [coder.site_out]
        self.widths = [model.width(site) for site in self.writes]

    def read(self, values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[site].flatten(1) for site in self.reads], 1)

    def active(self, values: dict[str, Tensor]) -> list[tuple[int, int]]:
        return [(int(p), int(i)) for p, i in plain_active(self.sae, self.read(values)).nonzero()]


def jacobians(
    model: Any,
    source: Any,
    target: Any,
    constant: Sequence[str] = (),
    *,
    read_first: bool = False,
    dropped: bool = False,
    only: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(∂ target / ∂ source, the same by differences); `constant` sites keep their values there.
    `read_first`: targets are read before what is constant stands there; `only`: where the source
    writes, if not at all its sites."""
    language_model = model.language_model
    clean = plain_run(language_model, IDS)
    if source is None:
        site = PRE if "hook_pos_embed" in clean else "hook_embed"
        begin, put_at = torch.ones(len(IDS)).double(), {site: lambda f: f[:, None] * clean[site]}
    else:
        of = Dictionary(model, source)
        x = of.read(clean)
        rows = tuple(torch.tensor(of.active(clean)).T)
        latents = torch.where(plain_active(of.sae, x), plain_pre(of.sae, x), 0.0)
        y = torch.cat([clean[s].flatten(1) for s in of.writes], 1)
        missed = 0 if dropped else y - plain_decode(of.sae, latents, x)

        def written(f: Tensor, k: int) -> Tensor:
            dense = torch.zeros_like(latents).index_put(rows, f)
            value = (plain_decode(of.sae, dense, x) + missed).split(of.widths, 1)[k]
            return value.reshape(clean[of.writes[k]].shape)

        begin = latents[rows]
        put_at = {
            s: lambda f, k=k: written(f, k) for k, s in enumerate(of.writes) if only in (None, s)
        }
    base = plain_run(language_model, IDS, {s: lambda _, w=w: w(begin) for s, w in put_at.items()})

    def function(f: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], Tensor]:
            def visit(value: Tensor) -> Tensor:
                seen[site] = value if read_first else base[site]
                return base[site]

            return visit

        stops = {site: keep(site) for site in constant}
        puts = {s: lambda _, w=w: w(f) for s, w in put_at.items()}
        values = plain_run(language_model, IDS, {**stops, **puts})
        return read_off(model, target, clean, {**values, **seen})

    step, eye = 1e-5, torch.eye(len(begin)).double()
    differences = [
        (function(begin + step * e) - function(begin - step * e)) / step / 2 for e in eye
    ]
    return torch.func.jacrev(function)(begin), torch.stack(differences, 1)


def read_off(model: Any, target: Any, clean: Any, values: Any) -> Tensor:
    if isinstance(target, Logits):
        return values["logits"][-2, [2, 9, 30]]
    if isinstance(target, LogitDifference):
        return (values["logits"][-1, 3] - values["logits"][-1, 8])[None]
    into = Dictionary(model, target)
    return plain_pre(into.sae, into.read(values))[tuple(torch.tensor(into.active(clean)).T)]


def found(model: Any, saes: Any, prompt: Any = IDS, **how: Any) -> Edges:
    result = edges(model, saes, prompt, **how)
    assert isinstance(result, Edges)
    return result


WAYS: dict[str, tuple[tuple[str, ...] | None, Any]] = {
    "to logits": ((PRE, Z, NEXT), LOGITS),
    "to a difference": ((OUT, Z), DIFFERENCE),
    "from tokens": (None, (PRE, Z, LATE)),
    "from an SAE": ((OUT,), (PRE, Z, END)),
    "to an SAE": ((PRE, OUT, Z), (LATE,)),
    "interleaved": ((PRE, NEXT), (OUT, Z, LATE)),
}


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("way", WAYS)
def test_edges_are_derivatives(way: str, family: str) -> None:
    """Law 3, exact zeros where the target is earlier (law 4), with errors in and left out."""
    model = tiny_model(family)
    ends = [
        part
        if part is None or isinstance(part, Logits | LogitDifference)
        else crosscoder(model, *part, seed=n + 1)
        if len(part) > 1
        else tiny_sae("topk", part[0], model.width(part[0]), seed=n)
        for n, part in enumerate(WAYS[way])
    ]
    names = [Latents(part[-1]) if isinstance(part, tuple) else part for part in WAYS[way]]
    coders = [end for end in ends if hasattr(end, "encode")]
    source: Any = Tokens() if names[0] is None else names[0]
    for error in ("frozen", "attached", "dropped"):
        result = found(model, coders, source=source, target=names[1], error=error)
        plain, differences = jacobians(model, *ends, dropped=error == "dropped")
        torch.testing.assert_close(result.gradients, plain, **CLOSE)
        torch.testing.assert_close(result.gradients, differences, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.attributions, plain * result.sources.values)
        early = result.targets.positions[:, None] < result.sources.positions
        assert early.any() or way == "to a difference"
        assert (result.gradients[early] == 0).all()


@pytest.mark.parametrize("hold", [(), ("attention", "norms")], ids=["nothing", "both"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_direct_edges_stop_at_every_site_that_others_write(
    family: str, hold: tuple[str, ...]
) -> None:
    """A crosscoder that reads later what it writes earlier is in its own way, too."""
    model = tiny_model(family)
    source, target = crosscoder(model, PRE, Z, seed=1), crosscoder(model, OUT, MID, END, seed=2)
    other = crosscoder(model, NEXT, "blocks.2.attn.hook_z", seed=3)
    clean = plain_run(model.language_model, IDS)
    ends = ("hook_pattern", "hook_scale") if hold else "/"
    held = [site for site in clean if site.endswith(ends)]
    for into in (target, LOGITS):
        to = Latents(OUT) if isinstance(into, Crosscoder) else into
        how: dict[str, Any] = {"source": Latents(PRE), "target": to, "hold": hold}
        direct = found(model, [source, target, other], direct=True, **how)
        stops = [*target.writes, *other.writes, *held]
        plain, _ = jacobians(model, source, into, stops, read_first=into is target)
        torch.testing.assert_close(direct.gradients, plain, **CLOSE)
        total = found(model, [source, target, other], **how)
        plain, _ = jacobians(model, source, into, held)
        torch.testing.assert_close(total.gradients, plain, **CLOSE)
        assert (direct.gradients - total.gradients).abs().max() > 1e-3


def test_a_crosscoder_reads_what_it_has_written_itself() -> None:
    """By definition: at each of its sites the value is decode(f) + error, whatever came there."""
    model = tiny_model("gpt2")
    whole = crosscoder(model, PRE, OUT, Z)
    result = found(model, whole, source=Latents(Z), target=Latents(PRE))
    plain, differences = jacobians(model, whole, whole)
    torch.testing.assert_close(result.gradients, plain, **CLOSE)
    torch.testing.assert_close(result.gradients, differences, rtol=1e-5, atol=1e-6)
    same = result.targets.positions[:, None] == result.sources.positions
    weights = whole.joint.W_enc @ whole.joint.W_dec.T
    expected = weights[result.targets.indices][:, result.sources.indices]
    torch.testing.assert_close(result.gradients, expected * same, **CLOSE)
    assert not result.blocked


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_batches_are_prompts_one_by_one_and_memory_changes_no_number(family: str) -> None:
    model = tiny_model(family)
    coders = [crosscoder(model, PRE, NEXT, seed=1), crosscoder(model, OUT, Z, LATE, seed=2)]
    how: dict[str, Any] = {"source": Latents(PRE), "target": Latents(Z), "hold": "norms"}
    prompts = [IDS, [8, 36, 7], [5]]
    many: Any = edges(model, coders, prompts, **how)
    for prompt, each in zip(prompts, many, strict=True):
        alone = found(model, coders, prompt, **how)
        assert each.sources.ids == alone.sources.ids and each.targets.ids == alone.targets.ids
        torch.testing.assert_close(each.gradients, alone.gradients, rtol=0, atol=0)
    whole = found(model, coders, **how)
    with pytest.raises(GossamerError, match="are allowed") as refused:
        found(model, coders, **how, memory=1)
    assert "effects over 6 positions need" in str(refused.value)
    some = found(model, coders, source=Latents(NEXT, top=5), target=Latents(OUT, positions=[2, -1]))
    every = found(model, coders, source=Latents(NEXT), target=Latents(OUT))
    rows = [every.targets.ids.index(name) for name in some.targets.ids]
    columns = [every.sources.ids.index(name) for name in some.sources.ids]
    torch.testing.assert_close(some.gradients, every.gradients[rows][:, columns], **CLOSE)
    assert len(columns) == 5 and whole.density().possible == N * N


def test_one_name_wherever_it_is_asked_for_and_it_can_be_edited() -> None:
    """Ids name the first site; `run` with frozen errors moves what the edge says."""
    model = tiny_model("gpt2")
    whole = crosscoder(model, LATE, PRE, Z)
    names = {
        site: found(model, whole, source=Latents(site), target=LOGITS).sources.ids
        for site in whole.writes
    }
    assert len(set(names.values())) == 1
    nodes = [parse_node(name) for name in names[Z]]
    assert {node.site for node in nodes} == {PRE}
    result = found(model, whole, source=Latents(PRE), target=LOGITS)
    moved = []
    for sign in (1, -1):
        value = result.sources.values[4].item() + sign * 1e-5
        edit = Set(names[Z][4], value=value)
        logits = run(model, IDS, whole, edit, error="frozen").logits
        assert logits is not None
        moved.append(logits[0, -2, [2, 9, 30]])
    change = (moved[0] - moved[1]) / 2e-5
    torch.testing.assert_close(result.gradients[:, 4], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", [LOGITS, Latents(Z)], ids=["logits", "crosscoder"])
def test_what_ablating_a_latent_does_is_measured(target: Any) -> None:
    """`measure` ablates at every site and reads at every site."""
    model = tiny_model("gpt2")
    source, other = crosscoder(model, PRE, NEXT, seed=1), crosscoder(model, OUT, Z, LATE, seed=2)
    result = found(model, [source, other], source=Latents(PRE), target=target)
    (each,) = measure(model, [source, other], result, [(1, 3)])
    record = tuple(other.writes)
    runs = [
        run(model, IDS, source, edits, record, "frozen")
        for edits in ((), Ablate(result.sources.ids[3]))
    ]
    values = []
    for trace in runs:
        if target is LOGITS:
            assert trace.logits is not None
            values.append(trace.logits[0, -2, 9])
        else:
            x = {site: trace.activations[site].flatten(2)[0] for site in other.reads}
            pre = plain_pre(other.joint, other.side_by_side(x))
            values.append(pre[result.targets.positions[1], result.targets.indices[1]])
    assert each.measured == pytest.approx((values[0] - values[1]).item())


def test_a_part_of_it_writes_there_alone_and_reads_all() -> None:
    model = tiny_model("gpt2")
    whole = crosscoder(model, PRE, Z, LATE)
    part = whole.faces()[Z]
    result = found(model, part, source=Latents(Z), target=LOGITS)
    assert set(result.sources.ids) == {f"{Z}/{i}@{p}" for p, i in active(model, whole)}
    plain, _ = jacobians(model, whole, LOGITS, only=Z)
    torch.testing.assert_close(result.gradients, plain, **CLOSE)
    all_of_it = found(model, whole, source=Latents(Z), target=LOGITS)
    assert (all_of_it.gradients - result.gradients).abs().max() > 1e-3


def active(model: Any, whole: Crosscoder) -> list[tuple[int, int]]:
    return Dictionary(model, whole).active(plain_run(model.language_model, IDS))


def test_what_is_not_downstream_is_refused() -> None:
    model = tiny_model("gpt2")
    coders = [crosscoder(model, Z, LATE, seed=1), crosscoder(model, PRE, OUT, seed=2)]
    with pytest.raises(SiteError, match=f"read at {PRE}, {OUT}, before {Z}, {LATE}, where"):
        edges(model, coders, IDS, source=Latents(Z), target=Latents(OUT))
    blocked = found(
        model,
        [*coders, tiny_sae("topk", "blocks.0.hook_resid_post", 16)],
        source=Latents(PRE),
        target=Latents(LATE),
        direct=True,
    )
    assert blocked.blocked and (blocked.gradients == 0).all()

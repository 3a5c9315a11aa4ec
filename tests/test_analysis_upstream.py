"""What is upstream of a node, against the plain model: heads through q, k, both and v; neurons and
latents before and after their activation, at every kind of site (I8, I10, I11, I12)."""

import pytest
import torch

import gossamer
from gossamer.errors import GossamerError, PromptError, SiteError
from tests.plain_analysis import (
    IDS,
    PlainAnalysis,
    check_sums,
    check_table,
    close,
    coders_at,
    logit_difference,
    output_of,
)
from tests.plain_model import kind_of, plain_run
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import OwnSAE, plain_pre, tiny_sae

LAST = "blocks.2.hook_resid_post"
BEFORE = ("blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.mlp.hook_post")
"""SAEs at the outputs of earlier blocks."""

HEAD, QUERY, KEY = 1, 5, 3
SCORE = f"blocks.2.attn.hook_z/{HEAD}@{QUERY}<-{KEY}"


def query_and_key(values, hf, layer, head, query, key):
    rotated = "" if kind_of(hf) == "gpt2" else "rot_"
    q, k = (values[f"blocks.{layer}.attn.hook_{rotated}{name}"] for name in "qk")
    return q[query, head], k[key, head // (q.shape[1] // k.shape[1])]


def uncapped(hf, scores):
    cap = getattr(hf.config, "attn_logit_softcapping", None)
    return scores if cap is None else cap * torch.atanh(scores / cap)


def score_of(hf, route, layer=2, head=HEAD, query=QUERY, key=KEY):
    """q · k · scaling, one side as it is in the clean run."""
    with torch.no_grad():
        clean = plain_run(hf, IDS)
        q0, k0 = query_and_key(clean, hf, layer, head, query, key)
        first = uncapped(hf, clean[f"blocks.{layer}.attn.hook_attn_scores"][0, 0, 0])
        scaling = first / torch.dot(*query_and_key(clean, hf, layer, 0, 0, 0))

    def number(values):
        q, k = query_and_key(values, hf, layer, head, query, key)
        parts = {"q": q @ k0, "k": q0 @ k, "qk": q @ k0 + q0 @ k}
        return parts[route] * scaling

    return number, uncapped(hf, clean[f"blocks.{layer}.attn.hook_attn_scores"][head, query, key])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_through_query_and_key(family) -> None:
    """I8, I10, I11: each table against the plain model, both against their sum, with supports."""
    model = tiny_model(family)
    hf, read = model.language_model, "blocks.2.hook_resid_pre"
    coders = coders_at(model, BEFORE, FAMILIES.index(family))
    tables = {}
    for route in ("q", "k"):
        found = gossamer.upstream(model, IDS, SCORE, route, saes=coders, top=None)
        number, score = score_of(hf, route)
        close(found.value, score)
        plain = PlainAnalysis(hf, IDS, number, read, coders)
        check_table(plain, found)
        tables[route] = found
        gradient = found.trace.gradients[read][0]
        leaf = plain.values[read].detach().requires_grad_()
        held = {site: (lambda _, v=v: v) for site, v in plain.scales.items()}
        local = number(plain_run(hf, IDS, {**held, read: lambda _, leaf=leaf: leaf}))
        close(gradient, torch.autograd.grad(local, leaf)[0])
        support = gradient.abs().sum(1).nonzero()[:, 0].tolist()
        assert support == [QUERY if route == "q" else KEY]
        for kind in ("layer", "neuron", "head", "residual"):
            for site, each in gossamer.scalars(found.trace, kind, "direct").items():
                if site.startswith("blocks.2") and site != read:
                    assert not each.values.any()
    both = gossamer.upstream(model, IDS, SCORE, "qk", saes=coders, top=None)
    check_sums_of_both(both, tables, PlainAnalysis(hf, IDS, score_of(hf, "qk")[0], read, coders))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3"])
def test_latents_right_before_what_reads_them(family) -> None:
    """The SAE on the very stream that a head or neuron reads is a cut of its own."""
    model = tiny_model(family)
    hf, read = model.language_model, "blocks.2.hook_resid_pre"
    coders = coders_at(model, [read, "blocks.1.hook_resid_pre"])
    number, _ = score_of(hf, "q")
    found = gossamer.upstream(model, IDS, SCORE, "q", saes=coders, cut=read, top=None)
    check_table(PlainAnalysis(hf, IDS, number, read, coders), found)
    default = gossamer.upstream(model, IDS, SCORE, "q", saes=coders, top=None)
    assert default.cut == "blocks.1.hook_resid_pre" and default.sums[0].adds_up
    mid = "blocks.2.hook_resid_pre" if model.layout.parallel else "blocks.2.hook_resid_mid"
    (sae,) = coders_at(model, [mid])
    plain = PlainAnalysis(hf, IDS, lambda values: values["blocks.2.mlp.hook_pre"][4, 7], mid, [sae])
    node = gossamer.NodeValue("blocks.2.mlp.hook_post/7@4")
    found = gossamer.analyze(model, IDS, node, sae, top=None)
    assert found.cut == mid
    check_table(plain, found)


def check_sums_of_both(both, tables, plain) -> None:
    """Rows of q and k together are those of qk, which count the score twice."""
    close(both.value, plain.s / 2)
    rows = [row for row in both.rows if row.write_norm is not None]
    close([row.total for row in rows], [plain.total(row.node) for row in rows])
    summed: dict[str, torch.Tensor] = {}
    for found in tables.values():
        for row in found.rows:
            if row.write_norm is not None:
                pair = torch.tensor([row.direct, row.total], dtype=torch.float64)
                summed[row.node] = summed.get(row.node, 0) + pair
    for row in rows:
        close([row.direct, row.total], summed[row.node])
    constants = [
        next(row.direct for row in each.rows if row.write_norm is None)
        for each in (both, *tables.values())
    ]
    close(constants[0], constants[1] + constants[2])
    close(sum(row.direct for row in both.rows if row.in_cut), plain.s)
    assert both.sums[0].adds_up and "once through the query" in both.sums[0].sentence


def written_of(plain, head, query, key, layer=1):
    """What a head writes along the gradient of a plain analysis, pattern and gradient held."""
    g = plain.gradients[plain.read][query].detach()
    pattern = plain.values[f"blocks.{layer}.attn.hook_pattern"][head, query].detach()
    matrix = output_of(plain.model, layer, "attn")[0]

    def number(values):
        v = values[f"blocks.{layer}.attn.hook_v"]
        n_heads = plain.values[f"blocks.{layer}.attn.hook_pattern"].shape[0]
        keys = slice(None) if key is None else slice(key, key + 1)
        z = pattern[keys] @ v[keys, head // (n_heads // v.shape[1])]
        moved = z @ matrix.unflatten(0, (n_heads, -1))[head]
        return plain.normed(moved, layer, "attn", query) @ g

    return number


def downstream_of(model, name):
    """(a direction downstream of block 1's heads, the same in the plain model, where it is read,
    the position that it is read at, the SAE it needs)."""
    hf, last = model.language_model, len(IDS) - 1
    parallel = model.layout.parallel
    if name == "logits":
        number = logit_difference(hf, 3, 4)
        return gossamer.LogitDifference(3, 4), number, LAST, last, []
    if name == "neuron":
        read = "blocks.2.hook_resid_pre" if parallel else "blocks.1.hook_resid_mid"
        layer = 2 if parallel else 1
        node = gossamer.NodeValue(f"blocks.{layer}.mlp.hook_post/7@4")
        return node, lambda values: values[f"blocks.{layer}.mlp.hook_pre"][4, 7], read, 4, []
    if name == "latent":
        sae = tiny_sae("topk", "blocks.2.hook_resid_pre", model.d_model)
        node = gossamer.NodeValue(f"{sae.site_out}/7@4")
        return node, lambda values: plain_pre(sae, values[sae.site_in])[4, 7], sae.site_in, 4, [sae]
    score = gossamer.Through(f"blocks.2.attn.hook_z/0@{last}<-4", "k")
    number = score_of(hf, "k", head=0, query=last, key=4)[0]
    return score, number, "blocks.2.hook_resid_pre", 4, []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["logits", "neuron", "latent", "score"])
def test_what_a_head_writes_along_a_direction(family, name) -> None:
    """I12: the value is the head's direct effect; the table that of v, with all else held.
    Downstream a token, a neuron, a latent or another head's score."""
    model = tiny_model(family)
    hf = model.language_model
    direction, number, read, query, saes = downstream_of(model, name)
    down = PlainAnalysis(hf, IDS, number, read, saes)
    for key in (None, query - 1):
        arrow = "" if key is None else f"<-{key}"
        node = f"blocks.1.attn.hook_z/2@{query}{arrow}"
        found = gossamer.upstream(model, IDS, node, "v", target=direction, saes=saes, top=None)
        close(found.value, down.direct(node))
        if key is None:
            plain = PlainAnalysis(
                hf, IDS, written_of(down, 2, query, key), "blocks.1.hook_resid_pre", saes
            )
            check_table(plain, found)
        (row,) = [row for row in found.rows if row.write_norm is None]
        assert row.node.startswith("blocks.1.attn.hook_v/bias@")


def sites_of_latents(model):
    """(SAE, residual stream it is read from, whether it is affine in that)."""
    parallel = model.layout.parallel
    mid = "blocks.1.hook_resid_pre" if parallel else "blocks.1.hook_resid_mid"
    pre = "blocks.1.hook_resid_pre"
    width = model.width

    def sae(architecture, kind, **options):
        site = f"blocks.1.{kind}"
        return tiny_sae(architecture, site, width(site), **options)

    return {
        "stream": (sae("topk", "hook_resid_pre"), pre, True),
        "stream, gated": (sae("gated", "hook_resid_post"), "blocks.1.hook_resid_post", True),
        "stream, layer_norm": (
            sae("relu", "hook_resid_pre", normalization="layer_norm"), pre, False),
        "attention": (sae("jumprelu", "hook_attn_out"), pre, False),
        "z": (sae("topk", "attn.hook_z"), pre, False),
        "MLP": (sae("topk", "hook_mlp_out"), mid, False),
        "hidden": (sae("topk_signed", "mlp.hook_post"), mid, False),
        "transcoder": (
            sae("topk", "mlp.hook_in", site_out="blocks.1.hook_mlp_out", skip=True), mid, True),
        "normalized": (
            sae("relu", "ln2.hook_normalized", site_out="blocks.1.hook_mlp_out"), mid, True),
        "own": (OwnSAE(pre, model.d_model), pre, False),
    }  # fmt: skip


LATENTS = tuple(sites_of_latents(tiny_model("gpt2")))


@pytest.mark.parametrize(("number", "place"), list(enumerate(LATENTS)))
def test_pre_activations_of_latents(number, place) -> None:
    """I10: two families each, in turn, every family met; an upstream trace is the same table."""
    for family in (FAMILIES[number % 10], FAMILIES[(number + 3) % 10]):
        model = tiny_model(family)
        sae, read, affine = sites_of_latents(model)[place]
        others = coders_at(model, BEFORE[:1], number)
        before = gossamer.run(model, IDS, sae).latents[sae.site_out][0]
        t, unit = (int(x) for x in before.abs().nonzero()[-1])
        node = f"{sae.site_out}/{unit}@{t}"
        plain = PlainAnalysis(
            model.language_model,
            IDS,
            lambda values, s=sae, t=t, m=unit: plain_pre(s, values[s.site_in].flatten(1))[t, m],
            read,
            [sae, *others],
        )
        found = gossamer.analyze(
            model, IDS, gossamer.NodeValue(node), [sae, *others], top=None, cut="hook_embed"
        )
        check_values_and_sums(plain, found, affine)
        close(found.value, before[t, unit])
        traced = gossamer.upstream(model, IDS, node, saes=[sae, *others], top=None)
        assert traced.rows == found.rows
        post = gossamer.analyze(model, IDS, gossamer.NodeValue(node, "post"), [sae, *others])
        close(post.value, before[t, unit])


def check_values_and_sums(plain, analysis, affine) -> None:
    close(analysis.value, plain.s)
    rows = [row for row in analysis.rows if row.write_norm is not None]
    close([row.direct for row in rows], [plain.direct(row.node) for row in rows])
    close([row.total for row in rows], [plain.total(row.node) for row in rows])
    check_sums(plain, analysis, affine=affine)


@pytest.mark.parametrize("error", ["attached", "detached", "frozen", "dropped"])
@pytest.mark.parametrize("own", [False, True])
def test_a_latent_is_read_before_its_own_splice(error, own) -> None:
    """Whatever the splice makes of the stream, the latent sees what came before it; a head that
    writes towards the latent too."""
    model = tiny_model("gpt2")
    site, before = "blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"
    sae = OwnSAE(site, 16) if own else tiny_sae("topk", site, 16)
    t, unit = (int(x) for x in gossamer.run(model, IDS, sae).latents[site][0].nonzero()[-1])
    node = gossamer.NodeValue(f"{site}/{unit}@{t}")
    plain = PlainAnalysis(
        model.language_model, IDS, lambda values: plain_pre(sae, values[before])[t, unit], before
    )
    found = gossamer.analyze(model, IDS, node, sae, error=error, top=None)
    check_values_and_sums(plain, found, not own)
    edits = [gossamer.Scale(site, 3.0, latents=[unit]), gossamer.Ablate(f"{site}/error@{t}")]
    if error != "dropped":  # another request makes the pass splice
        whole = gossamer.Choice(top=None)
        mine = gossamer.Request(prompt=IDS, target=node, saes=sae, error=error, choice=whole)
        other = gossamer.Request(prompt=IDS, target=3, saes=sae, error=error, edits=edits)
        check_values_and_sums(plain, gossamer.analyze_batch(model, [mine, other])[0], not own)
        with pytest.raises(SiteError, match="changes what its SAE writes"):
            gossamer.analyze(model, IDS, node, sae, edits, error=error)
    head = f"blocks.0.attn.hook_z/2@{t}"
    written = gossamer.upstream(model, IDS, head, "v", target=node, saes=sae, error=error)
    close(written.value, plain.direct(head))


def test_an_inactive_latent_has_a_pre_activation_and_a_zero() -> None:
    """It can be explained before its selection; after it there is nothing to explain."""
    model = tiny_model("llama")
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    trace = gossamer.run(model, IDS, sae)
    off = int((trace.latents[sae.site_out][0, 4] == 0).nonzero()[0])
    node = f"{sae.site_out}/{off}@4"
    found = gossamer.analyze(model, IDS, gossamer.NodeValue(node), sae)
    close(found.value, trace.pre_activations[sae.site_out][0, 4, off])
    assert found.rows
    nothing = gossamer.analyze(model, IDS, gossamer.NodeValue(node, "post"), sae)
    assert nothing.value == 0 and all(row.direct == 0 == row.total for row in nothing.rows)
    with pytest.raises(SiteError, match="not active at position 4"):
        gossamer.upstream(model, IDS, node, saes=sae)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_neurons(family) -> None:
    """I10, before the activation function, where the norm's scale makes it affine, and after it."""
    model = tiny_model(family)
    read = "blocks.1.hook_resid_pre" if model.layout.parallel else "blocks.1.hook_resid_mid"
    coders = coders_at(model, ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"])
    for name, of in (("hook_post", "pre"), ("hook_pre", "post")):
        site = f"blocks.1.mlp.hook_{of}"
        plain = PlainAnalysis(
            model.language_model, IDS, lambda values, s=site: values[s][4, 7], read, coders
        )
        node = gossamer.NodeValue(f"blocks.1.mlp.{name}/7@4", of)
        found = gossamer.analyze(model, IDS, node, coders, top=None)
        assert found.cut == "blocks.0.hook_resid_pre"
        check_values_and_sums(plain, found, of == "pre")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", LAST])
def test_directions_of_the_stream(family, site) -> None:
    """Nothing stands between the stream and its own coordinate: the constant is 0."""
    model = tiny_model(family)
    along = torch.arange(16, dtype=torch.float64) - 4
    direction = gossamer.ResidualDirection(site, along, position=4)
    coders = coders_at(model, [*BEFORE, "blocks.0.hook_resid_post"])
    plain = PlainAnalysis(
        model.language_model, IDS, lambda values: values[site][4] @ along, site, coders
    )
    for cut in (None, "hook_embed"):
        found = gossamer.analyze(model, IDS, direction, coders, cut=cut, top=None)
        check_sums(plain, found)
        assert abs(next(r for r in found.rows if r.node == f"{site}/bias@4").direct) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_trace_of_an_edited_run(family) -> None:
    """The edited row's numbers, and the clean ones beside."""
    model = tiny_model(family)
    sae = tiny_sae("relu", "blocks.1.hook_resid_pre", model.d_model)
    clean = gossamer.run(model, IDS, sae).pre_activations[sae.site_out][0].detach()
    unit = int(clean[5].argmax())
    edit = gossamer.Scale("blocks.0.attn.hook_z", 1.5, positions=[3, -1])
    edited = gossamer.run(model, IDS, sae, edit).pre_activations[sae.site_out][0].detach()
    node = f"{sae.site_out}/{unit}@5"
    found = gossamer.upstream(model, IDS, node, saes=sae, edits=edit, top=None)
    assert found.clean is not None
    close([found.value, found.clean_value], [edited[5, unit], clean[5, unit]])
    assert found.sums[0].adds_up and found.clean.sums[0].adds_up
    plain = gossamer.upstream(model, IDS, node, saes=sae, top=None)
    assert plain.rows == found.clean.rows


def test_heads_that_cannot_be_traced_are_refused() -> None:
    model = tiny_model("mistral")
    head = "blocks.1.attn.hook_z/1@5"
    for node, route, error, said in (
        (head, "q", SiteError, "names no key"),
        (f"{head}<-0", "q", SiteError, "outside its window"),
        (f"{head}<-9", "k", SiteError, "looks ahead"),
        ("blocks.1.attn.hook_z/9@5<-4", "q", SiteError, r"choose from 0\.\.3"),
        ("blocks.1.attn.hook_z/1@9<-4", "q", PromptError, "Position 9"),
        ("blocks.9.attn.hook_z/1@5<-4", "q", SiteError, r"blocks 0\.\.2"),
        ("blocks.1.mlp.hook_post/1@5", "q", SiteError, "not a head"),
        (f"{head}<-4", "pre", SiteError, "is a head"),
        (head, "pre", SiteError, "no neurons"),
        (head, "v", GossamerError, "target="),
    ):
        with pytest.raises(error, match=said):
            gossamer.upstream(model, IDS, node, route)
    for target, said in (
        (gossamer.NodeValue("blocks.1.mlp.hook_post/1@5"), None),
        (gossamer.NodeValue("blocks.0.mlp.hook_post/1@5"), "not upstream"),
        (gossamer.Through(f"{head}<-4", "k"), "not upstream"),
        (gossamer.Through(head, "v", 3), "not itself a trace through v"),
    ):
        if said is None:
            gossamer.upstream(model, IDS, head, "v", target=target)
            continue
        with pytest.raises(GossamerError, match=said):
            gossamer.upstream(model, IDS, head, "v", target=target)

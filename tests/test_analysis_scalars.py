"""Every derived scalar, kind × metric, against the plain model; sums over axes; after any run."""

import itertools

import pytest
import torch

import gossamer
from gossamer.analysis.scalars import AXES, METRICS, TABLE
from gossamer.errors import GossamerError, SiteError
from tests.plain_analysis import IDS, PlainAnalysis, close, coders_at, logit_difference
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import OwnSAE, tiny_sae

LAST = "blocks.2.hook_resid_post"
SITES = (
    "blocks.1.hook_resid_pre",
    "blocks.0.attn.hook_z",
    "blocks.0.mlp.hook_post",
    "blocks.1.hook_attn_out",
    "blocks.2.mlp.hook_in",
    LAST,
)
TARGET = gossamer.LogitDifference(3, 4)
VECTORS = ("layer", "residual")


def nodes_of(found, n):
    """Ids of nodes in the order of a kind's flattened values."""
    kind, site = found.kind, found.site
    if kind == "latent":
        pairs = zip(found.units.tolist(), found.positions.tolist(), strict=True)
        return [f"{site}/{unit}@{position}" for unit, position in pairs]
    if kind in ("error", "bias", "remainder"):
        return [f"{site}/{kind}@{t}" for t in range(n)]
    if kind in ("embedding", "position"):
        return [f"{site}/{IDS[t] if kind == 'embedding' else t}@{t}" for t in range(n)]
    if kind == "pair":
        shape = [range(size) for size in found.values.shape]
        return [f"{site}/{h}@{t}<-{u}" for t, u, h in itertools.product(*shape)]
    return [f"{site}/{m}@{t}" for t in range(n) for m in range(found.values.shape[1])]


def expected_of(plain, kind, metric, node):
    """A scalar from the definitions."""
    if metric == "activation":
        return plain.activation(node)
    if metric == "write_norm":
        return float(plain.write(node).norm())
    return plain.direct(node) if metric == "direct" else plain.total(node)


def vectors_of(plain, kind, metric, site):
    """The same of what is a whole vector at each position."""
    value = plain.values[site].detach()
    if metric == "activation":
        return value
    if metric == "write_norm":
        return value.norm(dim=1)
    return (value * plain.gradients[LAST if metric == "direct" else site]).sum(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_table(family) -> None:
    model = tiny_model(family)
    coders = coders_at(model, SITES, FAMILIES.index(family))
    trace = gossamer.analyze(model, IDS, TARGET, coders).trace
    bare = gossamer.analyze(model, IDS, TARGET).trace
    hf = model.language_model
    number = logit_difference(hf, 3, 4)
    plain = PlainAnalysis(hf, IDS, number, LAST, coders)
    plain_bare = PlainAnalysis(hf, IDS, number, LAST)
    for kind, metric in TABLE:
        on_coders = kind in ("latent", "error", "remainder", "bias")
        one, oracle = (trace, plain) if on_coders else (bare, plain_bare)
        found = gossamer.scalars(one, kind, metric)
        assert found or kind in ("position", "bias")
        for site, each in found.items():
            assert (each.kind, each.metric, each.site) == (kind, metric, site)
            if kind in VECTORS:
                close(each.values, vectors_of(oracle, kind, metric, site))
                continue
            places = nodes_of(each, len(IDS))
            assert len(places) == each.values.numel()
            some = slice(None) if len(places) < 100 else slice(None, None, 7)
            close(
                each.values.flatten()[some],
                [expected_of(oracle, kind, metric, node) for node in places[some]],
            )
    layers = gossamer.scalars(bare, "layer", "direct")
    assert len(layers) == 2 * model.n_layers


def test_the_table_has_every_kind_and_metric() -> None:
    no_value = {"head", "error", "bias", "remainder", "layer"}
    expected = {
        (kind, metric)
        for kind, metric in itertools.product(AXES, METRICS)
        if metric != "activation" or kind not in no_value
    }
    assert set(TABLE) == expected


@pytest.mark.parametrize("kind", [kind for kind in AXES if kind != "remainder"])
def test_sums_over_axes(kind) -> None:
    """In every combination, as sums of the whole; named axes are those that are left."""
    model = tiny_model("gpt2")
    saes = coders_at(model, SITES[:1])
    trace = gossamer.analyze(
        model, IDS, TARGET, saes if kind in ("latent", "error") else None
    ).trace
    for site, whole in gossamer.scalars(trace, kind, "total").items():
        values, axes = whole.values, whole.axes
        if kind == "latent":
            assert whole.positions is not None and whole.units is not None
            values = values.new_zeros(len(IDS), 20)
            values[whole.positions, whole.units] = whole.values
            axes = ("pos", "unit")
        for size in range(1, len(axes) + 1):
            for names in itertools.combinations(axes, size):
                for order in (names, names[::-1], (*names, names[0])):
                    summed = gossamer.scalars(trace, kind, "total", site=site, reduce=order)[site]
                    left = tuple(axis for axis in axes if axis not in names)
                    assert summed.axes == left and summed.metric == "total"
                    close(summed.values, values.sum([axes.index(name) for name in names]))
    with pytest.raises(GossamerError, match="can be summed over"):
        gossamer.scalars(trace, kind, "total", reduce="layer")


def test_a_streams_values_have_an_axis_more() -> None:
    trace = gossamer.analyze(tiny_model("gpt2"), IDS, TARGET).trace
    for site, found in gossamer.scalars(trace, "residual", "activation").items():
        assert len(found.axes) == found.values.ndim == 2
        assert found.values.shape == trace.activations[site].shape[1:]
        summed = gossamer.scalars(trace, "residual", "activation", site=site, reduce="pos")[site]
        close(summed.values, found.values.sum(0))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_after_any_run(family) -> None:
    """Activations and write norms of a run's trace, every prompt of it cut to its own length; no
    effects, since it explains no number."""
    model = tiny_model(family)
    coders = coders_at(model, SITES)
    prompts = [IDS[:3], IDS, [4]]
    record = [site for site in model.sites if not site.endswith("hook_attn_scores")]
    trace = gossamer.run(model, prompts, coders, record=record[:-1])
    analyses = [gossamer.analyze(model, ids, 3, coders).trace for ids in prompts]
    for kind, metric in TABLE:
        if metric in ("direct", "total"):
            with pytest.raises(GossamerError, match="explains no number"):
                gossamer.scalars(trace, kind, metric)
            continue
        for prompt, analysis in enumerate(analyses):
            mine = gossamer.scalars(trace, kind, metric, prompt=prompt)
            theirs = gossamer.scalars(analysis, kind, metric)
            assert mine.keys() >= theirs.keys() or kind == "residual"
            for site in mine.keys() & theirs.keys():
                close(mine[site].values, theirs[site].values)
    with pytest.raises(GossamerError, match="0"):
        gossamer.scalars(trace, "neuron", "activation", prompt=3)


def test_after_a_run_that_recorded_little() -> None:
    """What is there is enough for what is made of it; what is not there is named."""
    model = tiny_model("gpt2")
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    site = "blocks.1.mlp.hook_post"
    trace = gossamer.run(model, [IDS, IDS[:2]], sae, record=[sae.site_out, site])
    found = gossamer.scalars(trace, "latent", "activation", prompt=1)[sae.site_out]
    assert found.units is not None and found.positions is not None
    close(found.values, trace.latents[sae.site_out][1, found.positions, found.units])
    neurons = gossamer.scalars(trace, "neuron", "activation", prompt=1)
    assert list(neurons) == [site]
    close(neurons[site].values, trace.activations[site][1, :2])
    assert gossamer.scalars(trace, "neuron", "write_norm", prompt=1)[site].values.shape == (2, 64)
    with pytest.raises(SiteError, match=r"has not recorded blocks.1.mlp.hook_in|has not recorded"):
        gossamer.scalars(
            gossamer.run(model, IDS, record="blocks.1.attn.hook_z"), "pair", "activation"
        )
    bare = gossamer.run(model, IDS, sae)
    with pytest.raises(GossamerError, match=r"record"):
        gossamer.scalars(bare, "latent", "activation")


@pytest.mark.parametrize("kind", ["mlp.hook_in", "ln2.hook_normalized", "attn.hook_q"])
def test_latents_that_write_nothing_into_the_stream(kind) -> None:
    """SAEs inside a block: what they write is read by the block's own modules first."""
    model = tiny_model("gpt2")
    site = f"blocks.1.{kind}"
    sae = tiny_sae("topk", site, model.width(site))
    trace = gossamer.analyze(model, IDS, TARGET, sae).trace
    hf = model.language_model
    plain = PlainAnalysis(hf, IDS, logit_difference(hf, 3, 4), LAST, [sae])
    total = gossamer.scalars(trace, "latent", "total")[site]
    close(total.values, [plain.total(node) for node in nodes_of(total, len(IDS))])
    for metric in ("direct", "write_norm"):
        for nodes in ("latent", "error", "bias"):
            assert not gossamer.scalars(trace, nodes, metric)[site].values.any()


def test_scalars_that_there_are_not() -> None:
    model = tiny_model("gpt2")
    trace = gossamer.analyze(model, IDS, TARGET, OwnSAE("blocks.1.hook_attn_out", 16)).trace
    for arguments, options, said in (
        (("neurons", "direct"), {}, "kind is one of embedding"),
        (("neuron", "effect"), {}, "A neuron has activation"),
        (("head", "activation"), {}, "A head has write_norm"),
        (("neuron", "edge_in"), {}, "name the other one"),
        (("neuron", "direct"), {"node": "blocks.1.mlp.hook_post/3@2"}, "node= belongs to"),
        (("neuron", "share"), {"node": "blocks.1.mlp.hook_post/3@2"}, "share is of pairs"),
        (("residual", "edge_in"), {"node": "blocks.1.mlp.hook_post/3@2"}, "no edges"),
        (("neuron", "direct"), {"site": "blocks.1.attn.hook_z"}, "no neuron at"),
        (("neuron", "direct"), {"prompt": 1}, "from 0, got 1"),
        (("neuron", "direct"), {"prompt": -1}, "from 0, got -1"),
    ):
        with pytest.raises(GossamerError, match=said):
            gossamer.scalars(trace, *arguments, **options)
    with pytest.raises(GossamerError, match="which model ran"):
        gossamer.scalars(gossamer.Trace(trace.tokens, trace.mask, None), "head", "write_norm")


def test_values_are_of_the_runs_own_type() -> None:
    """float32 in, float32 out, whatever the SAE is of; no graph is kept."""
    model = tiny_model("gpt2", torch.float32)
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    analysis = gossamer.analyze(model, IDS, TARGET, sae)
    assert analysis.sums[0].adds_up
    for kind, metric in TABLE:
        for found in gossamer.scalars(analysis.trace, kind, metric).values():
            assert not found.values.requires_grad
            if kind != "latent":
                assert found.values.dtype == torch.float32

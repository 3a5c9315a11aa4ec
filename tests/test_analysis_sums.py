"""Node tables against the plain model: every number of every row, and what columns add up to.

Numbers of identities and of known mistakes are those of the notes on earlier debuggers. The
mistakes, and what keeps each of them away:

B1  position −1 of a padded prompt           test_analysis_batch (ragged batches equal singles)
B2  SAEs trimmed to their first latents      every latent against plain_latents (check_table)
B3  b_out left out for SAEs at MLP outputs   check_sums: over the cut, writes make up the stream
B4  architectures guessed from samples       every architecture here; the SAE's own rule selects
B5  V traces to downstream latents fail      test_analysis_upstream
B6  signed magnitudes, no bias or error row  write_norm against ‖write‖; check_sums
B7  a row shows a pair, its edit takes all   test_analysis_batch (a pair's edit moves its own row)
B8  scores without centring                  test_scores_of_a_write_need_centring
B9  options that do nothing                  by construction; unknown options are refused (batch)
B10 one model only, tests that download      every family here, random weights
B11 a key needed to start                    by construction: nothing here speaks to a network
B12 .grad of weights filled                  test_analysis_batch
B13 T² H d_v tensors                         by construction: pairs come from A and v · along alone
B14 names by the hundred                     test_analysis_scalars: kinds × metrics
B15 first-order totals, last position only   change beside estimate; positions here and in batches
"""

import pytest
import torch

import gossamer
from gossamer.analysis.directions import LogProbability, Probability
from tests.plain_analysis import (
    FINAL,
    IDS,
    PlainAnalysis,
    check_sums,
    check_table,
    close,
    coders_at,
    logit_difference,
    plain_logits,
)
from tests.plain_model import plain_run
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import OwnSAE, tiny_sae

LAST = "blocks.2.hook_resid_post"
INSIDE = (
    "blocks.0.hook_mlp_out",
    "blocks.1.hook_attn_out",
    "blocks.1.mlp.hook_post",
    "blocks.2.attn.hook_z",
    "blocks.2.mlp.hook_in",
)
"""Places of SAEs at what blocks write; the last one a transcoder's."""

SHAPES = ("gpt2", "gpt_neox", "gpt_neox_sequential", "qwen3", "gemma2")
"""One family of each shape of block, where not all are needed."""

TARGET = gossamer.LogitDifference(3, 4)


def plain_of(family, coders=(), position=-1, **options):
    model = tiny_model(family).language_model
    number = logit_difference(model, 3, 4, position)
    return PlainAnalysis(model, IDS, number, LAST, coders, **options)


def residual_sites(model, layer=1):
    """Sites of the stream around a block, one in its middle where there is one."""
    middle = [] if model.layout.parallel else [f"blocks.{layer}.hook_resid_mid"]
    return [f"blocks.{layer}.hook_resid_pre", *middle, LAST]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_bare_model_are_what_the_plain_model_says(family) -> None:
    """I1, I2, I5: embeddings, heads, neurons, biases; each row, and the stream they make up."""
    analysis = gossamer.analyze(tiny_model(family), IDS, TARGET, top=None)
    assert analysis.cut == "hook_embed"
    check_table(plain_of(family), analysis)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_saes_inside_blocks(family) -> None:
    """I4: latents, errors, biases and remainders at every kind of output."""
    model = tiny_model(family)
    coders = coders_at(model, INSIDE, FAMILIES.index(family))
    analysis = gossamer.analyze(model, IDS, TARGET, coders, top=None)
    assert analysis.cut == "hook_embed"
    check_table(plain_of(family, coders), analysis)
    assert {row.kind for row in analysis.rows} >= {"latent", "error", "bias", "remainder"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_adds_up(family) -> None:
    """I4 at residual SAEs: before, inside and after blocks, and through all of them uncut."""
    model = tiny_model(family)
    shift = FAMILIES.index(family)
    sites = residual_sites(model)
    coders = [*coders_at(model, sites, shift), *coders_at(model, INSIDE[-2:], shift + 3)]
    plain = plain_of(family, coders)
    assert gossamer.analyze(model, IDS, TARGET, coders).cut == sites[0]
    for cut in (sites[shift % len(sites)], "hook_embed"):
        analysis = gossamer.analyze(model, IDS, TARGET, coders, cut=cut, top=None)
        assert analysis.cut == cut
        check_sums(plain, analysis)
    rows = [row for row in analysis.rows if row.write_norm is not None and not row.in_cut]
    assert {row.node.split("/")[0] for row in rows} == set(sites)
    for column, expected in (("direct", plain.direct), ("total", plain.total)):
        close([getattr(row, column) for row in rows], [expected(row.node) for row in rows])


@pytest.mark.parametrize(
    ("family", "hold", "pairs"),
    [
        ("gpt2", (), True),
        ("gpt2", ("attention",), False),
        ("gemma3", (), False),
        ("gemma3", ("norms", "attention"), True),
        ("gpt_neox", ("attention",), True),
        ("gpt_neox", ("attention", "norms"), False),
    ],
)
def test_rows_with_other_things_held(family, hold, pairs) -> None:
    model = tiny_model(family)
    coders = coders_at(model, [*residual_sites(model), *INSIDE[1:3]])
    plain = plain_of(family, coders, hold=hold)
    analysis = gossamer.analyze(model, IDS, TARGET, coders, hold=hold, top=None, pairs=pairs)
    check_table_with(plain, analysis, affine="norms" in hold)


def check_table_with(plain, analysis, *, affine) -> None:
    """`check_table` where s need not be affine in the stream."""
    rows = [row for row in analysis.rows if row.write_norm is not None]
    close([row.direct for row in rows], [plain.direct(row.node) for row in rows])
    close([row.total for row in rows], [plain.total(row.node) for row in rows])
    check_sums(plain, analysis, affine=affine)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_heads_by_key(family) -> None:
    """I3, I5: rows by pair; their sums over keys; patterns; norms of sums and sums of norms."""
    model, held = tiny_model(family), ("norms", "attention")
    pairs = gossamer.analyze(model, IDS, TARGET, hold=held, top=None, pairs=True)
    check_table(plain_of(family, hold=held), pairs)
    heads = gossamer.analyze(model, IDS, TARGET, hold=held, top=None)
    by_head = {row.node: row for row in heads.rows if row.kind == "head"}
    summed = {name: torch.zeros(4, dtype=torch.float64) for name in by_head}
    for row in pairs.rows:
        if row.kind == "pair":
            summed[row.node.split("<-")[0]] += torch.tensor(row[6:], dtype=torch.float64)
    for name, (attended, norms, direct, total) in summed.items():
        assert attended <= 1 + 1e-9 and norms >= (by_head[name].write_norm or 0.0) - 1e-9
        close([direct, total], [by_head[name].direct, by_head[name].total])


@pytest.mark.parametrize("family", SHAPES)
def test_layers_are_the_sums_of_their_nodes(family) -> None:
    """I3, I4: Σ heads + bias, Σ neurons + bias, Σ SAE = the layer; direct and total, by token."""
    model = tiny_model(family)
    bare = gossamer.analyze(model, IDS, TARGET).trace
    coders = coders_at(model, INSIDE, FAMILIES.index(family))
    spliced = gossamer.analyze(model, IDS, TARGET, coders).trace
    for metric in ("direct", "total"):
        layers = gossamer.scalars(bare, "layer", metric)
        biases = gossamer.scalars(bare, "bias", metric)
        for kind, part, inside in (
            ("head", "attn", "attn.hook_z"),
            ("neuron", "mlp", "mlp.hook_post"),
        ):
            nodes = gossamer.scalars(bare, kind, metric, reduce="unit")
            for layer in range(3):
                at = f"blocks.{layer}."
                bias = biases.get(f"{at}{part}")
                total = nodes[f"{at}{inside}"].values + (0 if bias is None else bias.values)
                close(total, layers[f"{at}hook_{part}_out"].values)
        for coder in coders:
            _, layer, kind = coder.site_out.split(".", 2)
            part = "attn" if "attn" in kind else "mlp"
            total = gossamer.scalars(spliced, "latent", metric, site=coder.site_out, reduce="unit")
            summed = total[coder.site_out].values
            for piece in ("error", "bias", "remainder"):
                found = gossamer.scalars(spliced, piece, metric).get(coder.site_out)
                summed = summed if found is None else summed + found.values
            own = gossamer.scalars(spliced, "bias", metric).get(f"blocks.{layer}.{part}")
            if not kind.endswith("_out") and own is not None:
                summed = summed + own.values
            close(summed, gossamer.scalars(spliced, "layer", metric)[
                f"blocks.{layer}.hook_{part}_out"].values)  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("place", ["blocks.1.hook_resid_pre", *INSIDE[1:4]])
def test_a_coder_of_ones_own(family, place) -> None:
    """Its latents write what its decoder's derivative says; the rest is remainder."""
    model = tiny_model(family)
    coder = OwnSAE(place, model.width(place))
    analysis = gossamer.analyze(model, IDS, TARGET, coder, top=None)
    check_table(plain_of(family, [coder]), analysis)
    assert any(row.kind == "remainder" for row in analysis.rows)


@pytest.mark.parametrize("normalization", ["center", "layer_norm", "rescale"])
@pytest.mark.parametrize("place", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"])
def test_saes_that_normalize(normalization, place) -> None:
    model = tiny_model("gemma2")
    coder = tiny_sae("topk", place, model.width(place), normalization=normalization)
    analysis = gossamer.analyze(model, IDS, TARGET, coder, top=None)
    check_table(plain_of("gemma2", [coder]), analysis)


@pytest.mark.parametrize("error", ["detached", "frozen", "dropped"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_rows_in_every_error_mode(family, error) -> None:
    """Values and gradients of the splice that was asked for; cut behind the last residual SAE."""
    model = tiny_model(family)
    coders = coders_at(model, ["blocks.1.hook_resid_mid", *INSIDE[1:]])
    analysis = gossamer.analyze(model, IDS, TARGET, coders, error=error, top=None)
    plain = plain_of(family, coders, error="dropped" if error == "dropped" else "detached")
    assert analysis.cut == "blocks.1.hook_resid_mid"
    rows = [row for row in analysis.rows if row.write_norm is not None]
    if error == "dropped":
        assert not any(row.kind == "error" for row in rows)
    check_table_with(plain, analysis, affine=True)
    logits = gossamer.run(model, IDS, coders, error=error).logits
    cap = getattr(model.language_model.config, "final_logit_softcapping", None)
    if cap is None and logits is not None:
        close(analysis.value, logits[0, -1, 3] - logits[0, -1, 4])


@pytest.mark.parametrize("family", SHAPES)
def test_nodes_of_the_last_block(family) -> None:
    """I6: behind the last MLP there is nothing but the number; behind the last heads an MLP, unless
    both are side by side."""
    model = tiny_model(family)
    coder = tiny_sae("topk", "blocks.2.hook_mlp_out", model.d_model)
    trace = gossamer.analyze(model, IDS, TARGET).trace
    latents = gossamer.analyze(model, IDS, TARGET, coder).trace
    for run, kind in ((trace, "neuron"), (latents, "latent"), (latents, "error")):
        metrics = [gossamer.scalars(run, kind, m) for m in ("direct", "total")]
        direct, total = (list(each.values())[-1].values for each in metrics)
        close(direct, total)
    site = "blocks.2.attn.hook_z"
    direct, total = (
        gossamer.scalars(trace, "head", m, site=site)[site].values for m in ("direct", "total")
    )
    assert torch.allclose(direct[-1], total[-1], rtol=1e-9) == model.layout.parallel


@pytest.mark.parametrize("family", SHAPES)
def test_a_held_scale_is_a_scale_whose_gradient_is_zero(family) -> None:
    """I7: detaching equals zeroing, to the bit in the plain model; unheld, g · r is nearly 0."""
    model = tiny_model(family)
    hf, number = model.language_model, logit_difference(model.language_model, 3, 4)

    def zeroed(value: torch.Tensor) -> torch.Tensor:
        value = value.view_as(value)
        value.register_hook(torch.zeros_like)
        return value

    site = "ln_final.hook_scale"
    found = []
    for replace in ({site: zeroed}, {site: torch.Tensor.detach}):
        values = plain_run(hf, IDS, replace)
        found.append(torch.autograd.grad(number(values), values[LAST])[0])
    assert torch.equal(*found)
    held = gossamer.analyze(model, IDS, TARGET)
    close(held.trace.gradients[LAST][0], found[0])
    loose = gossamer.analyze(model, IDS, TARGET, hold=())
    sizes = [
        float((each.trace.gradients[LAST] * each.trace.activations[LAST]).sum().abs())
        for each in (loose, held)
    ]
    assert sizes[0] < 1e-3 * sizes[1]
    assert loose.rows and loose.sums[0].adds_up
    (rest,) = [row for row in loose.rows if row.node == f"logits/remainder@{len(IDS) - 1}"]
    close(rest.direct, loose.value - float((loose.trace.gradients[LAST] * loose.trace.activations[
        LAST]).sum()))  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "gemma2"])
def test_gradients_by_latents_are_those_of_the_unspliced_model(family) -> None:
    """I16: f ∂s/∂f = f (W_dec ∂s/∂x)."""
    model = tiny_model(family)
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    trace = gossamer.analyze(model, IDS, TARGET, sae).trace
    total = gossamer.scalars(trace, "latent", "total")[sae.site_out]
    values = gossamer.scalars(trace, "latent", "activation")[sae.site_out].values
    upstream = plain_of(family).gradients[sae.site_out]
    rows = sae.W_dec[total.units] * upstream[total.positions]
    close(total.values, values * rows.sum(1))


@pytest.mark.parametrize("family", SHAPES)
def test_zeroing_a_last_neuron_with_scales_held_takes_its_direct_effect(family) -> None:
    """I19: exactly; with the real norms it does not, and the analysis shows both."""
    model = tiny_model(family)
    site, t, unit = "blocks.2.mlp.hook_post", len(IDS) - 1, 3
    node = f"{site}/{unit}@{t}"
    plain = plain_of(family)
    without = plain.values[site].detach().clone()
    without[t, unit] = 0.0
    held = {name: (lambda _, v=v: v) for name, v in plain.scales.items()}
    edited = plain.number(plain_run(plain.model, IDS, {**held, site: lambda _: without}))
    analysis = gossamer.analyze(model, IDS, TARGET, edits=gossamer.Ablate(node))
    assert analysis.clean is not None and analysis.clean.rows_at is not None
    (row,) = analysis.clean.rows_at([node])
    close(edited - plain.s, -row.direct)
    real = plain.number(plain_run(plain.model, IDS, {site: lambda _: without}))
    assert analysis.change is not None and analysis.estimate is not None
    close([analysis.change, analysis.estimate], [float((real - plain.s).detach()), -row.total])
    assert abs(analysis.change + row.direct) > 1e-6 * abs(row.direct)


def test_scores_of_a_write_need_centring() -> None:
    """I20: Δu · γ ⊙ (w − mean w) / σ is the direct effect; without the centring it is not."""
    model = tiny_model("gpt2")
    plain = plain_of("gpt2")
    node = f"blocks.2.mlp.hook_post/5@{len(IDS) - 1}"
    analysis = gossamer.analyze(model, IDS, TARGET, top=None)
    (row,) = [row for row in analysis.rows if row.node == node]
    w, hf = plain.write(node), model.language_model
    along = (hf.lm_head.weight[3] - hf.lm_head.weight[4]) * hf.transformer.ln_f.weight
    along = along.detach() / plain.scales["ln_final.hook_scale"][-1]
    close(row.direct, (w - w.mean()) @ along)
    assert abs(float(w @ along) - row.direct) > 1e-3 * abs(row.direct)


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_have_their_closed_forms(family) -> None:
    """I21, at a position that is not the last, with Gemma's cap where the model has it."""
    model, position = tiny_model(family), 3
    hf = model.language_model
    with torch.no_grad():
        values = plain_run(hf, IDS)
        before = plain_logits(hf, values[FINAL][position])
    chances = values["logits"][position].softmax(-1)
    directions = {
        gossamer.Logits(7, position=position): before[7],
        gossamer.Logits((7, 9, 7), position=position): before[[7, 9]].mean(),
        gossamer.Logits(position=position): before.max(),
        gossamer.LogitDifference((7, 9), 2, position=position): before[[7, 9]].mean() - before[2],
        gossamer.LogitMinusMean(7, position=position): before[7] - before.mean(),
        Probability((7, 9), position=position): chances[7] + chances[9],
        LogProbability((7, 9), position=position): (chances[7] + chances[9]).log(),
        gossamer.KL(position=position): torch.zeros(()),
    }
    requests = [gossamer.Request(prompt=IDS, target=direction) for direction in directions]
    for found, expected in zip(
        gossamer.analyze_batch(model, requests), directions.values(), strict=True
    ):
        close(found.value, expected)
        assert found.position == position and found.sums[0].adds_up


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["probability", "minus mean", "log-probability"])
def test_rows_of_directions_that_are_not_linear(family, name) -> None:
    model = tiny_model(family)
    hf, position = model.language_model, 3
    cap = getattr(hf.config, "final_logit_softcapping", None)

    def number(values):
        logits = plain_logits(hf, values[FINAL][position])
        if name == "minus mean":
            return logits[7] - logits.mean()
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        chance = logits.softmax(-1)[7]
        return chance if name == "probability" else chance.log()

    direction = {
        "probability": Probability(7, position),
        "minus mean": gossamer.LogitMinusMean(7, position),
        "log-probability": LogProbability(7, position),
    }[name]
    sae = tiny_sae("jumprelu", "blocks.1.hook_resid_pre", model.d_model)
    plain = PlainAnalysis(hf, IDS, number, LAST, [sae])
    analysis = gossamer.analyze(model, IDS, direction, sae, top=None)
    check_table_with(plain, analysis, affine=name == "minus mean")


def test_a_column_that_does_not_add_up_says_so() -> None:
    """Law 8: total effects pass through one another; what edits put into the stream is no row's."""
    model = tiny_model("gpt2")
    direct, total = gossamer.analyze(model, IDS, TARGET).sums
    assert direct.adds_up and not total.adds_up
    assert "not the value" in total.sentence and "passes through" in total.sentence
    edited = [
        gossamer.Ablate("blocks.1.hook_resid_mid", positions=[5]),
        gossamer.Scale("blocks.1.hook_attn_out", 2.0),
    ]
    for edit in edited:
        direct, _ = gossamer.analyze(model, IDS, TARGET, edits=edit).sums
        assert not direct.adds_up
        assert "not the value" in direct.sentence and "edits" in direct.sentence
    saes = coders_at(model, ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"])
    direct, _ = gossamer.analyze(
        model, IDS, TARGET, saes, error="dropped", cut="blocks.1.hook_resid_pre"
    ).sums
    assert not direct.adds_up and "left out" in direct.sentence
    last = gossamer.analyze(model, IDS, TARGET, saes, error="dropped", cut=saes[1].site_out)
    assert last.sums[0].adds_up

"""Law 1: adapters are faithful. What a model gives at every site, against three references:

the oracle of `plain_model.py` (every site, to rounding), raw torch hooks on the untouched Hugging
Face model, and transformers' own eager attention. Eager is the reference for logits as well: with
transformers 4.56 the default attention leaves out Gemma-2's soft-cap and GPT-2's scaling by layer.
"""

import functools
from collections.abc import Callable, Iterable

import pytest
import torch
import transformers
from torch import Tensor, nn

from gossamer.errors import GossamerError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.sites import parse_site
from tests.conftest import TOLERANCE
from tests.plain_model import Replace, allowed, blocks_of, plain_run, plain_sites
from tests.tiny_models import CONFIGS, FAMILIES, tiny_language_model
from tests.tiny_models import tiny_model as tiny

LONG = [3, 1, 4, 15, 9, 2, 6, 5, 35]
SHORT = [8, 8, 36, 7, 0, 11]
BOTH = [LONG, SHORT]

NORMED_HEADS = ("attn.q_norm.hook_scale", "attn.k_norm.hook_scale")
"""Sites whose layout has a test of its own."""

each_family = pytest.mark.parametrize("family", FAMILIES)
both_types = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


@functools.cache
def eager(family: str, dtype: torch.dtype) -> nn.Module:
    """The same weights under transformers' own eager attention."""
    model = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[family](), attn_implementation="eager"
    )
    model.to(dtype).load_state_dict(tiny_language_model(family, dtype).state_dict())
    return model.eval()


@torch.no_grad()
def recorded(model: Model, batch: TokenBatch, sites: Iterable[str]) -> dict[str, Tensor]:
    """What a run shows at some sites."""
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[Tensor], Tensor]:
        return lambda value: seen.setdefault(site, value)

    model.forward(batch, {site: keep(site) for site in sites}, to_the_end=False)
    return seen


def is_per_pair(site: str) -> bool:
    """Whether a value has a query axis and a key axis."""
    return site.endswith(("hook_attn_scores", "hook_pattern"))


def real_part(site: str, value: Tensor, where: Tensor) -> Tensor:
    """The value of one prompt at its real tokens; `where` (pos,) says which they are."""
    return value[:, where][:, :, where] if is_per_pair(site) else value[where]


@pytest.mark.floor
@both_types
@each_family
def test_logits_are_hugging_faces_own(family: str, dtype: torch.dtype) -> None:
    model = tiny(family, dtype)
    with torch.no_grad():
        expected = eager(family, dtype)(input_ids=torch.tensor([LONG])).logits
        fast = model.forward(model.batch(LONG), {})
    visited = model.forward(model.batch(LONG), {})  # with gradients: attention step by step
    # A float64 model in transformers still rounds its RMSNorms and all eager softmaxes but GPT-2's
    # through float32; Gossamer does not. The oracle below holds the float64 run to 1e-10.
    rounds = dtype == torch.float32 or not family.startswith("gpt2")
    close = {"rtol": 1e-5, "atol": 1e-5} if rounds else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(fast, expected, **close)
    torch.testing.assert_close(visited, expected, **close)


@pytest.mark.floor
@both_types
@each_family
def test_every_site_has_the_value_its_formula_gives(family: str, dtype: torch.dtype) -> None:
    model = tiny(family, dtype)
    with torch.no_grad():
        expected = plain_run(model.language_model, LONG)
    assert set(model.sites) == set(expected)
    assert list(model.sites) == sorted(model.sites, key=lambda site: parse_site(site).order)
    seen = recorded(model, model.batch(LONG), model.sites)
    tolerance = TOLERANCE[dtype]
    for site in model.sites:
        if not site.endswith(NORMED_HEADS):
            torch.testing.assert_close(
                seen[site][0],
                expected[site],
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, s=site: f"{s}: {m}",
            )


@pytest.mark.floor
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_scales_of_queries_and_keys_have_the_position_axis_second_in_every_family(
    family: str,
) -> None:
    """Edits at positions and padding rely on it; Gemma-3 norms its heads after the transpose."""
    model = tiny(family)
    expected = plain_run(model.language_model, LONG)
    sites = [site for site in model.sites if site.endswith(NORMED_HEADS)]
    assert len(sites) == 2 * model.n_layers
    for site, value in recorded(model, model.batch(LONG), sites).items():
        assert value.shape == (1, *expected[site].shape), site
        torch.testing.assert_close(value[0], expected[site], rtol=1e-10, atol=1e-10)


_BLOCK_SITES = {
    "gpt2": {
        "hook_resid_mid": ("ln_2", "in"),
        "hook_attn_out": ("attn", "out"),
        "attn.hook_z": ("attn.c_proj", "in"),
        "hook_mlp_out": ("mlp", "out"),
        "mlp.hook_post": ("mlp.c_proj", "in"),
        "mlp.hook_pre": ("mlp.c_fc", "out"),
        "mlp.hook_in": ("ln_2", "out"),
    },
    "gpt_neox": {
        "hook_resid_mid": ("post_attention_layernorm", "in"),
        "hook_attn_out": ("attention", "out"),
        "attn.hook_z": ("attention.dense", "in"),
        "hook_mlp_out": ("mlp", "out"),
        "mlp.hook_post": ("mlp.dense_4h_to_h", "in"),
        "mlp.hook_pre": ("mlp.dense_h_to_4h", "out"),
        "mlp.hook_in": ("post_attention_layernorm", "out"),
    },
    "llama": {
        "hook_resid_mid": ("post_attention_layernorm", "in"),
        "hook_attn_out": ("self_attn", "out"),
        "attn.hook_q": ("self_attn.q_proj", "out"),
        "attn.hook_k": ("self_attn.k_proj", "out"),
        "attn.hook_v": ("self_attn.v_proj", "out"),
        "attn.hook_z": ("self_attn.o_proj", "in"),
        "hook_mlp_out": ("mlp", "out"),
        "mlp.hook_post": ("mlp.down_proj", "in"),
        "mlp.hook_pre": ("mlp.gate_proj", "out"),
        "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
        "mlp.hook_in": ("post_attention_layernorm", "out"),
    },
}
_BLOCK_SITES["gemma"] = {
    **_BLOCK_SITES["llama"],
    "hook_resid_mid": ("pre_feedforward_layernorm", "in"),
    "hook_attn_out": ("post_attention_layernorm", "out"),
    "hook_mlp_out": ("post_feedforward_layernorm", "out"),
    "mlp.hook_in": ("pre_feedforward_layernorm", "out"),
}
"""Where a raw hook on a block's submodule sees a site."""


def raw_sites(family: str) -> dict[str, tuple[str, str]]:
    for name in ("gpt2", "gpt_neox", "gemma"):
        if family.startswith(name):
            return _BLOCK_SITES[name]
    return _BLOCK_SITES["llama"]


@pytest.mark.floor
@each_family
def test_sites_are_what_raw_hooks_on_the_untouched_model_see(family: str) -> None:
    model, layer = tiny(family, torch.float32), 1
    untouched = eager(family, torch.float32)
    block = blocks_of(untouched)[layer]
    seen: dict[str, Tensor] = {}

    def watch(site: str, path: str, side: str) -> None:
        def first(given: object) -> Tensor:
            return given[0] if isinstance(given, tuple) else given

        def hook(_module: nn.Module, given: object, output: object) -> None:
            seen[f"blocks.{layer}.{site}"] = first(given if side == "in" else output).clone()

        handles.append((block.get_submodule(path) if path else block).register_forward_hook(hook))

    handles: list = []
    for site, (path, side) in {**raw_sites(family), "hook_resid_post": ("", "out")}.items():
        if f"blocks.{layer}.{site}" in model.sites:
            watch(site, path, side)
    with torch.no_grad():
        output = untouched(input_ids=torch.tensor([LONG]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    seen[f"blocks.{layer}.hook_resid_pre"] = output.hidden_states[layer]
    seen["blocks.0.hook_resid_pre"] = output.hidden_states[0]
    for site, value in recorded(model, model.batch(LONG), seen).items():
        torch.testing.assert_close(value.flatten(2), seen[site].flatten(2), rtol=1e-4, atol=1e-5)


@pytest.mark.floor
@each_family
def test_patterns_are_eager_attentions_own(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        given = eager(family, torch.float64)(input_ids=torch.tensor([LONG]), output_attentions=True)
    kinds = ("hook_attn_scores", "hook_pattern")
    sites = [f"blocks.{layer}.attn.{kind}" for layer in range(model.n_layers) for kind in kinds]
    seen = recorded(model, model.batch(LONG), sites)
    for layer, expected in enumerate(given.attentions):
        scores, pattern = (seen[f"blocks.{layer}.attn.{kind}"] for kind in kinds)
        # eager rounds float64 patterns through float32
        torch.testing.assert_close(pattern, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            pattern.sum(-1), torch.ones_like(pattern[..., 0]), rtol=0, atol=1e-14
        )
        masked = ~allowed(model.language_model, layer, len(LONG))
        assert masked.any()
        assert torch.equal(scores == -torch.inf, masked.expand_as(scores))
        assert (pattern[masked.expand_as(pattern)] == 0).all()


@pytest.mark.floor
@pytest.mark.parametrize("side", ["left", "right"])
@each_family
def test_padding_and_neighbours_change_nothing(family: str, side: str) -> None:
    """Against the oracle, which knows neither batches nor padding, at sites of the last block."""
    model = tiny(family)
    alone = [plain_run(model.language_model, ids) for ids in BOTH]
    batch = model.batch(BOTH, side=side)
    assert batch.lengths == [len(LONG), len(SHORT)]
    sites = [s for s in plain_sites(model.language_model, [2]) if not s.endswith(NORMED_HEADS)]
    together = recorded(model, batch, sites)
    for site in sites:
        for row, single in enumerate(alone):
            value = together[site][row]
            torch.testing.assert_close(
                real_part(site, value, batch.mask[row]),
                single[site],
                rtol=1e-10,
                atol=1e-10,
                msg=lambda m, s=site: f"{s}: {m}",
            )
            if site.endswith("hook_pattern"):  # no real query looks at padding
                assert (value[:, batch.mask[row]][:, :, ~batch.mask[row]] == 0).all()


@pytest.mark.floor
@each_family
def test_padding_changes_no_logit_of_a_plain_run(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        alone = [model.forward(model.batch(ids), {})[0] for ids in BOTH]
        for side in ("left", "right"):
            batch = model.batch(BOTH, side=side)
            logits = model.forward(batch, {})
            for row, expected in enumerate(alone):
                torch.testing.assert_close(
                    logits[row][batch.mask[row]], expected, rtol=1e-10, atol=1e-10
                )


def change(site: str, value: Tensor, noise: Tensor) -> Tensor:
    """Another value for a site; scales and patterns stay positive."""
    if site.endswith(NORMED_HEADS):
        return 1.3 * value
    if site.endswith(("hook_scale", "hook_pattern")):
        return value * (1 + 0.5 * noise.abs())
    return value + 0.5 * noise


@pytest.mark.floor
@each_family
def test_a_changed_value_goes_through_the_rest_of_the_model(family: str) -> None:
    """Each site of one middle block and outside the blocks, in a padded batch, against the oracle.

    The oracle takes the two prompts of the batch in turn, one for each site.
    """
    model = tiny(family)
    oracle = functools.partial(plain_run, model.language_model)
    batch = model.batch(BOTH)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        clean = [oracle(ids) for ids in BOTH]
        for index, site in enumerate(plain_sites(model.language_model, [1])):
            shape = clean[0][site].shape
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            logits = model.forward(batch, {site: lambda v, s=site, z=noise: change(s, v, z)})
            row, n = index % 2, len(BOTH[index % 2])
            short = noise[:, :n, :n] if is_per_pair(site) else noise[:n]
            replace = {site: lambda v, s=site, z=short: change(s, v, z)}
            expected = oracle(BOTH[row], replace)["logits"]
            assert (expected - clean[row]["logits"]).abs().max() > 1e-3, f"{site} has no effect"
            torch.testing.assert_close(
                logits[row, :n], expected, rtol=1e-10, atol=1e-10, msg=lambda m, s=site: f"{s}: {m}"
            )


@each_family
def test_an_edited_score_cannot_let_a_query_see_ahead(family: str) -> None:
    model = tiny(family)
    site = "blocks.0.attn.hook_attn_scores"
    with torch.no_grad():
        clean = model.forward(model.batch(LONG), {})
        edited = model.forward(model.batch(LONG), {site: torch.zeros_like})
        later = model.forward(model.batch([*LONG[:-1], 20]), {site: torch.zeros_like})
    assert not torch.allclose(clean, edited)
    assert torch.equal(edited[:, :-1], later[:, :-1])


@pytest.mark.floor
@pytest.mark.parametrize("hold", [("attention",), ("norms",), ("attention", "norms")], ids="+".join)
@each_family
def test_held_sites_are_constants_of_the_gradient(family: str, hold: tuple[str, ...]) -> None:
    model = tiny(family)
    with torch.no_grad():
        clean = plain_run(model.language_model, LONG)
    endings = {"attention": "hook_pattern", "norms": "hook_scale"}
    constants = {s: v for s, v in clean.items() if any(s.endswith(endings[name]) for name in hold)}
    assert set(model.held_sites(hold)) == set(constants)
    weights = torch.randn(clean["logits"].shape, dtype=torch.float64)
    site = "blocks.0.hook_resid_pre"

    leaf = clean[site].clone().requires_grad_()
    taps = {held: Tensor.detach for held in model.held_sites(hold)}
    logits = model.forward(model.batch(LONG), {**taps, site: lambda _: leaf[None]})
    gradient = torch.autograd.grad((logits[0] * weights).sum(), leaf)[0]

    def gradient_of(replace: Replace) -> Tensor:
        start = clean[site].clone().requires_grad_()
        out = plain_run(model.language_model, LONG, {**replace, site: lambda _: start})["logits"]
        return torch.autograd.grad((out * weights).sum(), start)[0]

    expected = gradient_of({held: lambda _, c=value: c for held, value in constants.items()})
    torch.testing.assert_close(logits[0], clean["logits"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert (expected - gradient_of({})).abs().max() > 1e-3, "holding makes no difference here"


@pytest.mark.parametrize(
    "last", ["hook_resid_pre", "attn.hook_pattern", "hook_attn_out", "mlp.hook_pre"]
)
@each_family
def test_a_run_stops_right_after_the_last_site_it_needs(family: str, last: str) -> None:
    """Only modules that come before the site are called."""
    model = tiny(family)
    calls: dict[str, int] = {}
    handles = []
    for name, module in model.language_model.named_modules():
        count = functools.partial(
            lambda name, *_: calls.__setitem__(name, calls.get(name, 0) + 1), name
        )
        handles.append(module.register_forward_pre_hook(count))
    seen: list[Tensor] = []
    taps = {
        site: lambda v: seen.append(v) or v
        for site in (f"blocks.1.{last}", "blocks.0.hook_mlp_out")
    }
    result = model.forward(model.batch(LONG), taps, to_the_end=False)
    for handle in handles:
        handle.remove()
    paths = {id(module): name for name, module in model.language_model.named_modules()}
    assert result is None and len(seen) == 2
    once = {n for name, n in calls.items() if "rotary" not in name}  # Gemma-3 has two rotations
    assert once == {1}
    blocks = blocks_of(model.language_model)
    late = [blocks[2], model.language_model.get_output_embeddings()]
    if last != "mlp.hook_pre":
        late += [blocks[1].get_submodule(model.layout.adapter.mlp.module)]
    if last == "hook_resid_pre":
        late += [blocks[1].get_submodule(model.layout.adapter.ln1)]
    if last in ("hook_resid_pre", "attn.hook_pattern"):
        late += [blocks[1].get_submodule(raw_sites(family)["attn.hook_z"][0])]
    if last == "mlp.hook_pre":
        late += [blocks[1].get_submodule(model.layout.adapter.mlp.down)]
    assert not {paths[id(module)] for module in late} & set(calls)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3"])
def test_everything_is_put_back_also_after_an_error(family: str) -> None:
    language_model = tiny_language_model(family)
    model = Model(language_model)
    frozen = next(language_model.parameters())
    frozen.requires_grad_(False)

    def state() -> tuple[object, ...]:
        modules = list(language_model.modules())
        hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in modules]
        grads = [parameter.requires_grad for parameter in language_model.parameters()]
        names = [m.config._attn_implementation for m in modules if hasattr(m, "config")]
        return (
            hooks,
            grads,
            names,
            [m.training for m in modules],
            [vars(m).get("forward") for m in modules],
        )

    def fails(_value: Tensor) -> Tensor:
        raise ZeroDivisionError("in a tap")

    before, clean = state(), model.forward(model.batch(LONG), {})
    assert before == state() and before[1][0] is False and any(before[1])
    taps = {site: lambda v: v for site in model.sites if site != "logits"}
    with pytest.raises(ZeroDivisionError, match="in a tap"):
        model.forward(model.batch(LONG), {**taps, "blocks.1.hook_mlp_out": fails})
    assert before == state()
    assert model.forward(model.batch(LONG), taps, to_the_end=False) is None
    assert before == state()
    torch.testing.assert_close(model.forward(model.batch(LONG), {}), clean, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in language_model.parameters())


@each_family
def test_two_changes_in_one_run_are_both_made(family: str) -> None:
    model = tiny(family)
    first, second = "blocks.0.hook_mlp_out", "blocks.2.attn.hook_q"
    taps: Replace = {first: lambda v: 2 * v, second: lambda v: v + 1}
    with torch.no_grad():
        logits = model.forward(model.batch(LONG), dict(reversed(taps.items())))
        expected = plain_run(model.language_model, LONG, taps)["logits"]
        only = plain_run(model.language_model, LONG, {first: taps[first]})["logits"]
    torch.testing.assert_close(logits[0], expected, rtol=1e-10, atol=1e-10)
    assert (expected - only).abs().max() > 1e-3


@each_family
def test_bfloat16_stays_above_zero_and_below_its_noise_floor(family: str) -> None:
    """bf16 keeps 8 bits: 2^-9 ≈ 0.2 % a rounding, and some tens of roundings in a row add up.

    Independent roundings grow as a square root, √50 · 0.2 % ≈ 1.4 %; the bound is twice that.
    """
    wide, narrow = tiny(family, torch.float32), tiny(family, torch.bfloat16)
    with torch.no_grad():
        expected = wide.forward(wide.batch(LONG), {})
        for taps in ({}, {site: lambda v: v for site in narrow.sites}):
            logits = narrow.forward(narrow.batch(LONG), taps)
            assert logits.dtype == torch.bfloat16
            error = ((logits - expected).norm() / expected.norm()).item()
            assert 1e-4 < error < TOLERANCE[torch.bfloat16]


def test_widths_are_those_of_the_recorded_values() -> None:
    for family in FAMILIES:
        model = tiny(family)
        values = plain_run(model.language_model, LONG)
        for site in model.sites:
            if is_per_pair(site) or site.endswith("hook_scale"):
                with pytest.raises(SiteError, match="no fixed width"):
                    model.width(site)
            else:
                assert model.width(site) == values[site].flatten(1).shape[1], site


def test_an_unsupported_architecture_names_the_supported_ones() -> None:
    config = transformers.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)
    with pytest.raises(GossamerError, match=r'"bloom" .*gemma2.*gpt2.*llama.*qwen3'):
        Model(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.1.hook_mpl_out", r'"blocks.1.hook_mpl_out".*blocks.1.hook_mlp_out'),
        ("blocks.3.hook_resid_pre", r'"blocks.3.hook_resid_pre".*blocks 0\.\.2'),
        ("hook_embd", "hook_embed"),
        ("", "No site"),
        ("blocks.0.attn.hook_rot_q", r"blocks.0.attn.hook_q"),  # a site, but not one of GPT-2
        ("blocks.0.hook_resid_pre/3@1", "No site"),
    ],
)
def test_an_unknown_site_lists_near_ones(site: str, message: str) -> None:
    model = tiny("gpt2")
    for ask in (
        model.check_site,
        model.width,
        lambda s: model.forward(model.batch(LONG), {s: Tensor.detach}),
    ):
        with pytest.raises(SiteError, match=message):
            ask(site)


def test_parallel_blocks_have_no_place_between_attention_and_mlp() -> None:
    assert not any(site.endswith("hook_resid_mid") for site in tiny("gpt_neox").sites)
    with pytest.raises(SiteError, match="hook_resid_mid.*hook_resid_pre"):
        tiny("gpt_neox").check_site("blocks.0.hook_resid_mid")


def test_hold_and_a_run_without_an_end_are_refused_in_words() -> None:
    model = tiny("gpt2")
    with pytest.raises(GossamerError, match="'scales'.*attention, norms"):
        model.held_sites(["scales"])
    with pytest.raises(GossamerError, match="site to stop at"):
        model.forward(model.batch(LONG), {}, to_the_end=False)

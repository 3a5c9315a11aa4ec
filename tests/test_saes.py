"""Each architecture equals its formula; sparse equals dense; rows are derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents
from gossamer.saes import SAE, Gated, JumpReLU, Labels, ReLU, SparseCoder, TopK
from gossamer.saes.normalization import KINDS
from tests.conftest import TOLERANCE

D_IN, D_OUT, D_SAE, K = 6, 5, 17, 4
SITE, SITE_OUT = "blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"


def randn(*shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


SELECTIONS: dict[str, Callable[[], ReLU | TopK | JumpReLU | Gated]] = {
    "relu": ReLU,
    "topk": lambda: TopK(K),
    "topk_signed": lambda: TopK(K, relu=False),
    "topk_all": lambda: TopK(D_SAE, relu=False),
    "jumprelu": lambda: JumpReLU(randn(D_SAE) * 0.5),
    "gated": lambda: Gated(randn(D_SAE), randn(D_SAE) * 0.5),
}


def make_sae(selection: str = "relu", width_out: int = D_IN, **options) -> SAE:
    """A random SAE; a transcoder with a skip connection when the widths differ."""
    if width_out != D_IN:
        options = {"site_out": SITE_OUT, "W_skip": randn(width_out, D_IN)} | options
    return SAE(
        W_enc=randn(D_SAE, D_IN),
        b_enc=randn(D_SAE),
        W_dec=randn(D_SAE, width_out) * 2,
        b_dec=randn(width_out),
        selection=SELECTIONS[selection](),
        site_in=SITE,
        **options,
    )


def plain_latents(sae: SAE, u: Tensor) -> Tensor:
    """The published formula of each architecture, one token and one latent after another."""
    projection = torch.stack([(sae.W_enc * token).sum(1) for token in u])
    match sae.selection:
        case Gated() as gated:
            magnitude = torch.exp(gated.r_mag) * projection + sae.b_enc
            return (projection + gated.b_gate > 0) * magnitude.relu()
        case JumpReLU() as jump:
            pre = projection + sae.b_enc
            return torch.relu(pre) * (pre > jump.threshold)
        case TopK() as topk:
            rows = []
            for pre in projection + sae.b_enc:
                chosen = torch.zeros(sae.d_sae, dtype=u.dtype)
                chosen[torch.topk(pre, topk.k).indices] = 1
                rows.append(chosen * (pre.relu() if topk.relu else pre))
            return torch.stack(rows)
        case _:
            return torch.relu(projection + sae.b_enc)


def plain_input(kind: str, x: Tensor) -> Tensor:
    """The four normalizations, written from the definition of a standard deviation and a norm."""
    d = x.shape[-1]
    centred = x - x.sum(-1, keepdim=True) / d
    deviation = (centred.square().sum(-1, keepdim=True) / (d - 1)).sqrt()
    return {
        "none": x,
        "center": centred,
        "layer_norm": centred / (deviation + 1e-5),
        "rescale": x * (d / x.square().sum(-1, keepdim=True)).sqrt(),
    }[kind]


def plain_output(kind: str, y: Tensor, x: Tensor) -> Tensor:
    """The inverse of the normalization on the way out."""
    mean = x.mean(-1, keepdim=True)
    deviation = (x - mean).square().sum(-1, keepdim=True).div(x.shape[-1] - 1).sqrt()
    length = (x.square().sum(-1, keepdim=True) / x.shape[-1]).sqrt()
    return {
        "none": y,
        "center": y + mean,
        "layer_norm": y * deviation + mean,
        "rescale": y * length,
    }[kind]


@pytest.mark.parametrize("normalization", KINDS)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("subtract_b_dec", [False, True])
def test_encode_and_forward_equal_the_formula(
    selection: str, normalization: str, subtract_b_dec: bool
) -> None:
    sae = make_sae(selection, normalization=normalization, subtract_b_dec=subtract_b_dec)
    x = randn(11, D_IN) + 1
    u = plain_input(normalization, x) - (sae.b_dec if subtract_b_dec else 0)
    latents = plain_latents(sae, u)
    assert 0 < (latents != 0).sum()
    torch.testing.assert_close(sae.encode(x), latents, rtol=1e-12, atol=1e-12)
    y = plain_output(normalization, latents @ sae.W_dec + sae.b_dec, x)
    torch.testing.assert_close(sae(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_transcoder_with_skip_equals_the_formula(selection: str) -> None:
    sae = make_sae(selection, D_OUT)
    assert (sae.d_in, sae.d_out, sae.d_sae) == (D_IN, D_OUT, D_SAE)
    assert sae.is_transcoder and (sae.site_in, sae.site_out) == (SITE, SITE_OUT)
    x = randn(2, 3, D_IN)
    latents = plain_latents(sae, x.reshape(6, D_IN)).reshape(2, 3, D_SAE)
    y = latents @ sae.W_dec + sae.b_dec + x @ sae.W_skip.T
    torch.testing.assert_close(sae(x), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x), x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_sparse_latents_equal_dense_ones(selection: str, lead: tuple[int, ...]) -> None:
    sae = make_sae(selection)
    x = randn(*lead, D_IN)
    sparse, dense = sae.encode_sparse(x), sae.encode(x)
    expected = SparseLatents.from_dense(dense)
    assert sparse.shape == lead and sparse.d_sae == D_SAE
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(sparse, name), getattr(expected, name)), name
    assert sae.decode(dense).shape == (*lead, D_IN)
    torch.testing.assert_close(sae.decode(sparse), sae.decode(dense), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_latents_are_the_pre_activations_that_are_active(selection: str) -> None:
    sae = make_sae(selection)
    x = randn(9, D_IN)
    pre, latents = sae.pre_activations(x), sae.encode(x)
    active = sae.selection.active(pre, sae.b_enc)
    assert torch.equal(active, latents != 0)
    assert torch.equal(latents[active], pre[active])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_gradients_of_dense_and_sparse_latents_are_those_of_the_formula(selection: str) -> None:
    sae = make_sae(selection, normalization="layer_norm", subtract_b_dec=True)
    weight = randn(9, D_SAE)
    grads = []
    x = (randn(9, D_IN) + 1).requires_grad_()
    for encode in (
        sae.encode,
        lambda x: sae.encode_sparse(x).to_dense(),
        lambda x: plain_latents(sae, plain_input("layer_norm", x) - sae.b_dec),
    ):
        grads.append(torch.autograd.grad((encode(x) * weight).sum(), x)[0])
    assert grads[0].abs().max() > 0
    for grad in grads[:2]:
        torch.testing.assert_close(grad, grads[2], rtol=TOLERANCE[torch.float64], atol=1e-12)


@pytest.mark.parametrize("normalization", KINDS)
@pytest.mark.parametrize("selection", ["relu", "gated"])
def test_read_and_write_rows_are_jacobians(selection: str, normalization: str) -> None:
    sae = make_sae(selection, normalization=normalization, subtract_b_dec=True)
    x, latents = randn(D_IN) + 1, randn(D_SAE)
    indices = torch.tensor([3, 16, 0, 3])
    tokens = x.expand(4, -1)
    read = torch.func.jacrev(sae.pre_activations)(x)[indices]
    write = torch.func.jacrev(lambda f: sae.decode(f, x))(latents).T[indices]
    rtol = TOLERANCE[torch.float64]
    torch.testing.assert_close(sae.read_rows(indices, tokens), read, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(sae.write_rows(indices, tokens), write, rtol=rtol, atol=1e-12)
    if normalization in ("none", "center"):  # the same at every token
        torch.testing.assert_close(sae.read_rows(indices), read, rtol=rtol, atol=1e-12)
        torch.testing.assert_close(sae.write_rows(indices), write, rtol=rtol, atol=1e-12)


def test_rows_of_a_transcoder_are_jacobians_each_at_its_own_token() -> None:
    sae = make_sae("relu", D_OUT, normalization="layer_norm")
    x, indices = randn(3, D_IN), torch.tensor([1, 5, 9])
    reads, writes = sae.read_rows(indices, x), sae.write_rows(indices, x)
    for i, latent in enumerate(indices.tolist()):
        read = torch.func.jacrev(sae.pre_activations)(x[i])[latent]
        write = torch.func.jacrev(lambda f, token=x[i]: sae.decode(f, token))(randn(D_SAE))
        torch.testing.assert_close(reads[i], read, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(writes[i], write[:, latent], rtol=1e-10, atol=1e-12)


def test_no_latents_decode_to_the_bias() -> None:
    sae = make_sae("jumprelu")
    x = randn(2, 3, D_IN)
    sae.selection.threshold.fill_(1e9)
    sparse = sae.encode_sparse(x)
    assert sparse.values.numel() == 0 and sae.encode(x).count_nonzero() == 0
    assert torch.equal(sae.decode(sparse), sae.b_dec.expand(2, 3, -1))
    assert sae.read_rows(sparse.indices).shape == sae.write_rows(sparse.indices).shape == (0, D_IN)


def test_ties_are_broken_as_torch_topk_breaks_them() -> None:
    sae = make_sae("topk")
    sae.W_enc.zero_()
    sae.b_enc.fill_(1.0)
    x = randn(5, D_IN)
    expected = torch.zeros(5, D_SAE, dtype=torch.float64)
    expected.scatter_(-1, torch.topk(sae.pre_activations(x), K).indices, 1.0)
    assert torch.equal(sae.encode(x), expected)
    assert torch.equal(sae.encode_sparse(x).to_dense(), expected)


def test_selected_latents_that_are_negative_or_zero() -> None:
    for relu, active in ((True, [0]), (False, [0, 2])):
        sae = make_sae()
        arguments = sae.arguments() | {"selection": TopK(D_SAE, relu=relu)}
        arguments["W_enc"] = torch.zeros_like(sae.W_enc)
        arguments["b_enc"] = torch.zeros_like(sae.b_enc)
        arguments["b_enc"][:3] = torch.tensor([2.0, 0.0, -1.0])
        sparse = SAE(**arguments).encode_sparse(randn(1, D_IN))
        assert sparse.indices.tolist() == active


def test_gain_is_the_multiplier_of_the_encoder_row() -> None:
    sae = make_sae("gated")
    assert torch.equal(sae.selection.gain(), sae.selection.r_mag.exp())
    for selection in SELECTIONS.keys() - {"gated"}:
        assert make_sae(selection).selection.gain() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_other_dtypes(selection: str, dtype: torch.dtype) -> None:
    sae = make_sae(selection, normalization="layer_norm", subtract_b_dec=True)
    x = randn(5, D_IN)
    pre = sae.pre_activations(x)
    sae = sae.to(dtype)
    latents, sparse = sae.encode(x), sae.encode_sparse(x)  # x is cast to the SAE's dtype
    assert sae.dtype == latents.dtype == sparse.values.dtype == sae(x).dtype == dtype
    assert torch.equal(sparse.to_dense(), latents)
    error = (sae.pre_activations(x).double() - pre).norm() / pre.norm()
    assert error < TOLERANCE[dtype]
    rows = torch.arange(5), x
    assert sae.read_rows(*rows).dtype == sae.write_rows(*rows).dtype == dtype
    assert sae.decode(sparse, x).dtype == dtype


def test_weights_are_constants_and_gradients_reach_the_input() -> None:
    W_enc = randn(D_IN, D_SAE).T.requires_grad_()
    sae = SAE(**make_sae().arguments() | {"W_enc": W_enc})
    assert list(sae.parameters()) == [] and not any(b.requires_grad for b in sae.buffers())
    assert all(buffer.is_contiguous() for buffer in sae.buffers())
    x = randn(3, D_IN).requires_grad_()
    assert sae(x).requires_grad


def test_arguments_make_the_same_sae_again() -> None:
    sae = make_sae("gated", D_OUT, prepend_bos=True, model_name="m", metadata={"l0": 3})
    again = SAE(**sae.arguments())
    x = randn(3, D_IN)
    assert torch.equal(again(x), sae(x))
    assert str(again) == str(sae)
    for name, value in sae.arguments().items():
        same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
        assert same(again.arguments()[name], value), name


def test_any_class_with_sites_encode_and_decode_is_a_sparse_coder() -> None:
    class Own:
        site_in = site_out = SITE

        def encode(self, x: Tensor) -> Tensor:
            return x

        def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
            return latents

    assert isinstance(Own(), SparseCoder) and isinstance(make_sae(), SparseCoder)
    assert not isinstance(torch.nn.Identity(), SparseCoder)


def test_labels_are_short_and_readable() -> None:
    labels = Labels(((" def", "\n", "  ", "class", "fifth"), ()), ((" def f():",), ()))
    assert labels[0] == "def · ␤ · ␣␣ · class" and labels[1] == "" and len(labels) == 2
    with pytest.raises(ShapeError, match="each of the 2 latents, got 1"):
        Labels(((), ()), ((),))


BAD_ARGUMENTS = [
    ({"W_enc": randn(D_SAE)}, r"needs W_enc \(d_sae, d_in\) and W_dec .* got W_enc \(17,\)"),
    ({"W_dec": randn(2, 2, 2)}, r"got W_enc \(17, 6\) and W_dec \(2, 2, 2\)"),
    ({"W_enc": randn(D_IN, D_SAE)}, r"b_enc must have shape \(6,\), got \(17,\); .* latent first"),
    ({"W_dec": randn(D_IN, D_SAE)}, r"W_dec must have shape \(17, 17\), got \(6, 17\)"),
    ({"b_dec": randn(D_SAE)}, r"b_dec must have shape \(6,\), got \(17,\)"),
    ({"W_skip": randn(D_IN, D_OUT)}, r"W_skip must have shape \(6, 6\), got \(6, 5\)"),
    ({"b_enc": torch.zeros(D_SAE)}, r"one dtype, got .*W_enc torch.float64, b_enc torch.float32"),
    ({"normalization": "batch_norm"}, 'none, center, layer_norm, rescale, got "batch_norm"'),
    (
        {"W_dec": randn(D_SAE, D_OUT), "b_dec": randn(D_OUT)},
        "needs one width, got d_in=6 and d_out=5; give site_out",
    ),
    ({"site_out": SITE_OUT, "subtract_b_dec": True}, "fold the bias into b_enc"),
    ({"site_out": SITE_OUT, "normalization": "center"}, "subtract the mean of each row of W_enc"),
    ({"selection": TopK(D_SAE + 1)}, r"k in 1..d_sae, got k=18 with d_sae=17"),
    ({"selection": JumpReLU(randn(3))}, r"threshold of shape \(17,\), .* got \(3,\)"),
    ({"selection": Gated(randn(D_SAE), randn(3))}, r"r_mag of shape \(17,\), .* got \(3,\)"),
    ({"selection": Gated(randn(()), randn(D_SAE))}, r"b_gate of shape \(17,\), .* got \(\)"),
    ({"labels": Labels(((), ()))}, "has 17 latents, got labels of 2"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_parts_that_do_not_fit_are_refused(changed: dict, message: str) -> None:
    arguments = make_sae().arguments() | changed
    with pytest.raises(ShapeError, match=message):
        SAE(**arguments)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ShapeError, match="k of at least 1, got k=0"):
        TopK(0)
    sae = make_sae()
    for call in (sae.encode, sae.encode_sparse, sae.pre_activations, sae):
        with pytest.raises(ShapeError, match=rf"width 6 at {SITE}, got shape \(2, 7\)"):
            call(randn(2, D_IN + 1))
    with pytest.raises(ShapeError, match="has 17 latents, got latents of width 3"):
        sae.decode(randn(2, 3))
    with pytest.raises(ShapeError, match="has 17 latents, got latents of width 3"):
        sae.decode(SparseLatents.from_dense(randn(2, 3)))


def test_an_input_that_is_needed_is_asked_for() -> None:
    latents, indices = randn(2, D_SAE), torch.tensor([0, 1])
    scaled, skipping = make_sae(normalization="layer_norm"), make_sae("relu", D_OUT)
    with pytest.raises(ShapeError, match=r"normalization \(layer_norm\), so decode needs"):
        scaled.decode(latents)
    with pytest.raises(ShapeError, match=r"read_rows needs .* write read_rows\(..., x\)"):
        scaled.read_rows(indices)
    with pytest.raises(ShapeError, match="write_rows needs"):
        scaled.write_rows(indices)
    with pytest.raises(ShapeError, match="skip connection, so decode needs"):
        skipping.decode(latents)

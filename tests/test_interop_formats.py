"""Every pair of formats: what both can say goes there and back unchanged, the rest is refused.

`EXPRESSIBLE` is written by hand from the formats' descriptions and compared with what happens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.cli import convert
from gossamer.errors import FormatError, GossamerError
from gossamer.interop.formats import FORMATS, Format, format_at, format_called, known_format
from gossamer.saes import SAE, JumpReLU
from tests.tiny_saes import tiny_sae

WIDTH = 12
RULES = ("relu", "topk", "topk_signed", "jumprelu", "one threshold", "gated")
SHAPES = ("sae", "transcoder", "skip transcoder")
CASES = [f"{rule} {shape}" for rule in RULES for shape in SHAPES] + ["normed topk sae"]


def of(rules: str, *shapes: str) -> set[str]:
    names = {rule.replace("_", " ") if rule == "one_threshold" else rule for rule in rules.split()}
    return {f"{rule} {shape}" for rule in names for shape in shapes}


JUMPS = "jumprelu one_threshold"
NORMED = {"normed topk sae"}
EXPRESSIBLE = {
    "gossamer": set(CASES),
    "sae-lens": of(f"relu topk gated {JUMPS}", "sae") | of(f"relu {JUMPS}", *SHAPES[1:]) | NORMED,
    "sparsify": of("topk", *SHAPES),
    "dictionary-learning": of(f"relu topk gated {JUMPS}", "sae", "transcoder"),
    "openai": of("relu", "sae") | NORMED,
    "gemma-scope": of(JUMPS, "sae", "transcoder"),
    "gemma-scope-2": of(JUMPS, *SHAPES),
    "llama-scope": of("relu topk one_threshold", "sae", "transcoder"),
    "circuit-tracer-clt": of(f"relu {JUMPS}", "transcoder"),  # of one layer
    "circuit-tracer": of(f"relu topk_signed {JUMPS}", "transcoder", "skip transcoder"),
}
"""What each format has a word for; a Jacobian pair is two SAEs, tested with `convert`."""

ALONE = {form.name: form for form in FORMATS if form.write is not None}


def make(case: str) -> SAE:
    rule, _, shape = case.removeprefix("normed ").partition(" ")
    if rule == "one":
        rule, shape = "jumprelu", case.removeprefix("one threshold ")
    options: dict[str, Any] = {"normalization": "layer_norm"} if "normed" in case else {}
    if shape != "sae":
        options |= {"site_out": "blocks.0.hook_mlp_out", "skip": shape == "skip transcoder"}
    site = "blocks.0.hook_resid_post" if shape == "sae" else "blocks.0.mlp.hook_in"
    sae = tiny_sae(rule, site, WIDTH, **options)
    if case.startswith("one threshold"):
        assert isinstance(sae.selection, JumpReLU)
        sae.selection.threshold.fill_(0.75)
    return sae


def through(form: Format, sae: SAE, directory: Path) -> SAE:
    assert form.write is not None
    form.write(sae, directory)
    assert format_at(directory) is form
    (again,) = form.read(directory, None)
    return again


def same(first: SAE, second: SAE) -> None:
    """Equal latents and outputs; equal tensors where b_enc means the same in both."""
    x = torch.randn(6, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(first.encode(x), second.encode(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first(x), second(x), rtol=1e-12, atol=1e-12)
    assert (first.site_in, first.site_out) == (second.site_in, second.site_out)
    first_k, second_k = first.selection.scalars(), second.selection.scalars()
    assert first_k == second_k and first.selection.name == second.selection.name
    assert first.normalization == second.normalization
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        if (
            name not in ("b_enc", "selection.b_gate")
            or first.subtract_b_dec == second.subtract_b_dec
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_the_table_and_the_command_name_the_same_formats() -> None:
    assert ALONE.keys() == EXPRESSIBLE.keys()
    written = {form.name for form in FORMATS if form.write or form.write_together}
    assert set(convert.FORMATS) == written
    assert len({form.name for form in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_format_says_what_it_can_and_refuses_the_rest(name: str, tmp_path: Path) -> None:
    for case in CASES:
        directory = tmp_path / case
        if case in EXPRESSIBLE[name]:
            same(make(case), through(ALONE[name], make(case), directory))
            continue
        write = ALONE[name].write
        assert write is not None
        with pytest.raises(FormatError, match=r"(has|have) (no|one) .*sae\.save") as caught:
            write(make(case), directory)
        assert "\n" not in str(caught.value) and not directory.exists()


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_there_and_back_is_the_identity(name: str, tmp_path: Path) -> None:
    """From each format by way of each other, for all that both can say."""
    for case in sorted(EXPRESSIBLE[name]):
        first = through(ALONE[name], make(case), tmp_path / case)
        for other in EXPRESSIBLE:
            if other in (name, "gossamer") or case not in EXPRESSIBLE[other]:
                continue
            there = through(ALONE[other], first, tmp_path / f"{case} {other}")
            back = through(ALONE[name], there, tmp_path / f"{case} {other} back")
            same(first, back)


def test_unknown_things_are_listed(tmp_path: Path) -> None:
    assert format_at(tmp_path) is None and format_at(tmp_path / "nowhere") is None
    with pytest.raises(FormatError, match=r"holds no SAE: found nothing\. Known are sae\.json \+"):
        known_format(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(FormatError, match=r"x\.txt holds no SAE: found x\.txt"):
        known_format(tmp_path / "x.txt")
    with pytest.raises(GossamerError, match='No format "onnx"; write one of gossamer'):
        format_called("onnx")

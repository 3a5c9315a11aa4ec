"""What a dashboard holds, and the labels, texts, files and pages that are made of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.dashboards.examples import TOP, Examples
from gossamer.dashboards.files import read_parts, write_parts
from gossamer.errors import FormatError
from gossamer.saes.labels import Labels

_TENSORS = ("latents", "firings", "maxima", "histogram")
_PAIRS = ("near", "together", "logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedText:
    """A text, and what the latents do on it."""

    tokens: tuple[str, ...]
    """The text, token by token."""

    activations: Float[Tensor, "n_latents pos"]
    """Of each latent of the dashboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """What some latents do over a corpus. Rows of every tensor are the latents, in order."""

    site_in: str
    """The site the SAE reads."""

    site_out: str
    """The site it writes."""

    about: Mapping[str, Any]
    """Model, corpus, n_tokens, context, d_sae, neuronpedia_id if the SAE's file has one, and
    no_together: why `together` is None, in a sentence."""

    latents: Int64[Tensor, " n_latents"]
    """Which latents of the SAE."""

    firings: Int64[Tensor, " n_latents"]
    """Tokens on which each is active."""

    maxima: Float[Tensor, " n_latents"]
    """Largest activations."""

    histogram: Int64[Tensor, "n_latents bins"]
    """Activations by size, from 0 to the largest; of a sample where `sampled`."""

    sampled: bool
    """Whether histogram and quantiles are of a sample of the blocks."""

    examples: Examples
    """The strongest, and some of each quantile."""

    top_tokens: tuple[tuple[int, ...], ...]
    """Of each the tokens with the largest shares of Σ activation²."""

    near: tuple[Float[Tensor, "n_latents near"], Int64[Tensor, "n_latents near"]]
    """Cosines of decoder rows, and the latents."""

    together: tuple[Float[Tensor, "n_latents near"], Int64[Tensor, "n_latents near"]] | None
    """Tokens on which both fire by tokens on which either does, and the latents; None where the
    table would not fit."""

    logits: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """Values and tokens of the largest and of the smallest logit effects; see docs/metrics.md."""

    tokens: Mapping[int, str]
    """Every token named here, as text."""

    texts: tuple[TriedText, ...] = ()
    """What was tried."""

    names: tuple[str, ...] = field(default=())
    """A short label of each latent."""

    @property
    def densities(self) -> Float[Tensor, " n_latents"]:
        """Share of tokens on which each is active."""
        return self.firings.double() / self.about["n_tokens"]

    def labels(self) -> Labels:
        """Labels for all latents of the SAE, empty for those that are not here or never fire."""
        words: list[tuple[str, ...]] = [()] * int(self.about["d_sae"])
        contexts: list[tuple[str, ...]] = [()] * int(self.about["d_sae"])
        lines = self.excerpts()
        for latent, tokens in zip(self.latents.tolist(), self.top_tokens, strict=True):
            words[latent] = tuple(self.tokens[token] for token in tokens)
            contexts[latent] = tuple(lines[latent][:1]) if tokens else ()
        return Labels(tuple(words), tuple(contexts))

    def excerpts(self, n: int = 3, width: int = 18) -> dict[int, list[str]]:
        """By latent the text before its strongest activations, each ending with the token on
        which it fires, at most about `width` characters long."""
        found: dict[int, list[str]] = {latent: [] for latent in self.latents.tolist()}
        strongest = self.examples.groups == TOP
        for row, ids, values in zip(
            self.examples.latents[strongest].tolist(),
            self.examples.tokens[strongest].tolist(),
            self.examples.activations[strongest].tolist(),
            strict=True,
        ):
            lines = found[int(self.latents[row])]
            text = self._before(ids[: values.index(max(values)) + 1], width)
            if len(lines) < n and text not in lines:
                lines.append(text)
        return found

    def _before(self, ids: Sequence[int], width: int) -> str:
        text = self.tokens[ids[-1]]
        for token in reversed(ids[:-1]):
            word = self.tokens.get(token, "")
            if token < 0 or len(word) + len(text) > width:
                break
            text = word + text
        return text

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one safetensors file."""
        write_parts(*parts_of(self), Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Dashboard":
        """Read what `save` wrote. FormatError when it is something else, or damaged."""
        tensors, about = read_parts(Path(path))
        try:
            return _of_parts(tensors, about)
        except (KeyError, TypeError) as error:
            raise FormatError(
                f"{path} lacks a part of a dashboard ({error}); make it again."
            ) from error

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one page that opens offline."""
        from gossamer.views.latents import latents_to_html

        return latents_to_html(*parts_of(self), path)


def parts_of(board: Dashboard) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors by name, and everything else as JSON values."""
    tensors: dict[str, Tensor] = {name: getattr(board, name) for name in _TENSORS}
    tensors |= {f"examples.{name}": value for name, value in board.examples._asdict().items()}
    for name in _PAIRS:
        for place, value in enumerate(getattr(board, name) or ()):
            tensors[f"{name}.{place}"] = value
    for place, text in enumerate(board.texts):
        tensors[f"texts.{place}"] = text.activations
    about = {
        "site_in": board.site_in,
        "site_out": board.site_out,
        "about": dict(board.about),
        "sampled": board.sampled,
        "top_tokens": [list(tokens) for tokens in board.top_tokens],
        "tokens": {str(token): text for token, text in board.tokens.items()},
        "texts": [list(text.tokens) for text in board.texts],
        "names": list(board.names),
    }
    return tensors, about


def _of_parts(tensors: dict[str, Tensor], header: dict[str, Any]) -> Dashboard:
    pairs: dict[str, Any] = {}
    for name in _PAIRS:
        found = [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.")]
        pairs[name] = tuple(found) or None
    texts = tuple(
        TriedText(tokens=tuple(words), activations=tensors[f"texts.{place}"])
        for place, words in enumerate(header["texts"])
    )
    return Dashboard(
        site_in=header["site_in"],
        site_out=header["site_out"],
        about=header["about"],
        sampled=header["sampled"],
        top_tokens=tuple(tuple(tokens) for tokens in header["top_tokens"]),
        tokens={int(token): text for token, text in header["tokens"].items()},
        texts=texts,
        names=tuple(header["names"]),
        examples=Examples(*(tensors[f"examples.{name}"] for name in Examples._fields)),
        **{name: tensors[name] for name in _TENSORS},
        **pairs,
    )

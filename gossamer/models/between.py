"""The model between two sites, on the first positions of a prompt: what effects are derivatives of.

    value at the target's site = M(value at the source's site)

M is made of the blocks that lie between, no more of them, and in the last one only of what the
wanted positions need. Everything else a run knows (what comes before the source, masks, rotations)
is the clean run's and constant.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.models.blocks import BlockSetting, Span
from gossamer.models.norms import visited_norm
from gossamer.models.taps import Layout, Tap, weights_constant
from gossamer.sites import BEFORE_BLOCKS, parse_site


class _Reached(Exception):
    """Raised when the target's site has been seen: nothing behind it is needed."""


@dataclass(frozen=True, slots=True)
class Between:
    """The way from one site to a later one, as one forward pass of one prompt set it up."""

    layout: Layout
    """The model."""

    source: str
    """Where values are put in."""

    target: str
    """Where values are read; not the source's site."""

    settings: Mapping[int, BlockSetting]
    """What the forward pass told each block between."""

    clean: Mapping[str, Tensor]
    """What it showed at `needed(layout, source, target)`."""

    at: Mapping[str, Tap]
    """Further functions at sites on the way: what is held or blocked."""

    put: Mapping[str, Tensor] = field(default_factory=dict)
    """Values (1, pos, …) of the whole prompt that stand at sites on the way instead of theirs."""

    @property
    def blocks(self) -> range:
        """The blocks on the way."""
        return _blocks(self.layout, self.source, self.target)

    @staticmethod
    def needed(layout: Layout, source: str, target: str) -> tuple[str, ...]:
        """The sites that a forward pass must reach for its settings and clean values to do."""
        embedding = (source,) if source in BEFORE_BLOCKS else ()
        blocks = _blocks(layout, source, target)
        attention = (f"blocks.{blocks[-1]}.hook_attn_out",) if blocks else ()
        return (*embedding, _stream_site(layout, blocks.start), *attention)

    def run(
        self,
        value: Float[Tensor, "1 pos *rest"],
        start: int = 0,
        ids: Int64[Tensor, " n_ids"] | None = None,
    ) -> Tensor:
        """The value at the target's site, at positions `start` and later: (1, rows, …).

        `value` is put in at the source's site, at the prompt's first positions; the run goes no
        further than they do. Logits are those of the tokens `ids`, (1, rows, n_ids).
        """
        rows = value.shape[1] - start
        read: list[Tensor] = []

        def put_in(whole: Tensor, shown: Tensor) -> Tensor:
            return whole[:, value.shape[1] - shown.shape[1] : value.shape[1]]

        def take(shown: Tensor) -> Tensor:
            read.append(shown[:, shown.shape[1] - rows :])
            raise _Reached

        block = self.at.get(self.target)
        put = {**self.put, self.source: value}
        taps = {**self.at, **{site: partial(put_in, whole) for site, whole in put.items()}}
        taps[self.target] = take if block is None else lambda shown: take(block(shown))
        stream = self._stream(value)
        with suppress(_Reached), weights_constant(self.layout):
            stream = self._through_blocks(stream, taps, start)
            read.append(self._after_blocks(stream[:, stream.shape[1] - rows :], taps, ids))
        return read[0]

    def _stream(self, value: Float[Tensor, "1 pos *rest"]) -> Float[Tensor, "1 pos d_model"]:
        """What the first block between receives."""
        if self.source.endswith("hook_resid_post"):
            return value
        site = _stream_site(self.layout, self.blocks.start)
        stream = self.clean[site][:, : value.shape[1]]
        if self.source in BEFORE_BLOCKS:
            return stream - self.clean[self.source][:, : value.shape[1]] + value
        return stream

    def _through_blocks(
        self, stream: Float[Tensor, "1 pos d_model"], taps: Mapping[str, Tap], start: int
    ) -> Float[Tensor, "1 rows d_model"]:
        """The stream after the blocks, through the target's function if it is there."""
        blocks = self.blocks
        if blocks:
            span = Span(self.layout, self.settings, blocks[0], blocks[-1])
            stream = span.run(stream, taps, start)
        if self.target.endswith("hook_resid_pre"):
            taps[self.target](stream)
        return stream

    def _after_blocks(
        self,
        stream: Float[Tensor, "1 rows d_model"],
        taps: Mapping[str, Tap],
        ids: Int64[Tensor, " n_ids"] | None,
    ) -> Float[Tensor, "1 rows n_ids"]:
        """The logits of some tokens."""
        adapter, model = self.layout.adapter, self.layout.language_model

        def visit(kind: str, value: Tensor) -> Tensor:
            tap = taps.get(f"ln_final.{kind}")
            return value if tap is None else tap(value)

        norm = model.get_submodule(adapter.ln_final)
        hidden = visited_norm(norm, stream, adapter.gain_offset, visit)
        head = model.get_output_embeddings()
        wanted = slice(None) if ids is None else ids
        bias = getattr(head, "bias", None)
        logits = F.linear(hidden, head.weight[wanted], None if bias is None else bias[wanted])
        cap = getattr(model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _blocks(layout: Layout, source: str, target: str) -> range:
    """The blocks that run between two sites, the one where the source stands included."""
    n = len(layout.blocks)
    start, end = parse_site(source), parse_site(target)
    first = 0 if source in BEFORE_BLOCKS else n
    if start.layer is not None:
        first = start.layer + 1 if start.kind == "hook_resid_post" else start.layer
    stop = n if end.layer is None else end.layer + 1
    return range(first, stop - 1 if end.kind == "hook_resid_pre" else stop)


def _stream_site(layout: Layout, first: int) -> str:
    """Where the stream that block `first` receives can be seen."""
    n = len(layout.blocks)
    return f"blocks.{first}.hook_resid_pre" if first < n else f"blocks.{n - 1}.hook_resid_post"

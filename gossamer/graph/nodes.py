"""The nodes of a graph as one table, in an order in which every edge goes forward.

    kind        id                               what it is
    latent      blocks.3.hook_mlp_out/1234@7     an active latent of the SAE that writes there; of a
                                                 crosscoder, at the first of its sites
    error       blocks.3.hook_mlp_out/error@7    what that SAE misses
    token       hook_embed/15496@0               a token's embedding, by token id
    position    hook_pos_embed/7@7               a learned position embedding
    bias        blocks.3.attn/bias@7             constants: an SAE's b_dec, a module's biases
    remainder   blocks.3.mlp/remainder@7         what a linearised or held piece adds beyond its
                                                 linear part; at an SAE's site, also its latents
                                                 that are left out of the graph
    logit       logits/318@14                    a score less the mean score; logits/318-262@14 a
                                                 difference

Nodes are sorted by (where they write, position, …): a node's sources all stand before it.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args, overload

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.sites import NodeId

Kind = Literal["latent", "error", "token", "position", "bias", "remainder", "logit"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of nodes; `Nodes.kinds` holds their places in this list."""

WITHOUT_NUMBER = ("error", "bias", "remainder")
"""Kinds whose unit is a word."""


class Node(NamedTuple):
    """One node."""

    id: str
    """site/unit@position; parses back with `gossamer.sites.parse_node`."""

    kind: Kind
    """What it is."""

    site: str
    """Where it writes; a module's name for its bias or remainder."""

    unit: int | str
    """Latent, token id or position; "error", "bias", "remainder"; "318-262" for a difference."""

    position: int
    """Position in the prompt, from 0."""

    value: float
    """Activation of a latent, score of a logit; else 1."""

    label: str
    """What it means, as far as is known."""

    weight: float
    """How much a target counts; 0 for everything else."""

    reads: float
    """What its incoming edges add up to, with `constant`: pre-activation, or score; NaN for a
    leaf."""

    constant: float
    """The part of `reads` that is no node's: encoder bias, the bias of the norm before it."""

    residual: float
    """reads − constant − Σ incoming edges: 0 up to rounding where edges are exact."""


@dataclass(frozen=True)
class Nodes(Sequence[Node]):
    """Nodes, one in each row of every column."""

    sites: tuple[str, ...]
    """Sites and modules that nodes have, each once."""

    kinds: Int[np.ndarray, " n"]
    """Place in KINDS (int8)."""

    site_of: Int[np.ndarray, " n"]
    """Place in `sites` (int32)."""

    units: Int[np.ndarray, " n"]
    """Latent, token id, position (int64); −1 for words; of a difference its first token."""

    positions: Int[np.ndarray, " n"]
    """From 0 (int32)."""

    values: Float[np.ndarray, " n"]
    """See Node; all floats are float64."""

    weights: Float[np.ndarray, " n"]
    """See Node."""

    reads: Float[np.ndarray, " n"]
    """See Node."""

    constants: Float[np.ndarray, " n"]
    """See Node; NaN for a leaf."""

    residuals: Float[np.ndarray, " n"]
    """See Node; NaN for a leaf."""

    distractors: Int[np.ndarray, " n"]
    """Second token of a difference, else −1 (int64)."""

    labels: tuple[str, ...]
    """See Node."""

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self) if f.name != "sites"}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"The columns of nodes differ in length: {lengths}.")

    def __len__(self) -> int:
        return len(self.units)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return Node(
            self.id_of(i),
            KINDS[int(self.kinds[i])],
            self.sites[int(self.site_of[i])],
            self._unit(i),
            int(self.positions[i]),
            float(self.values[i]),
            self.labels[i],
            float(self.weights[i]),
            float(self.reads[i]),
            float(self.constants[i]),
            float(self.residuals[i]),
        )

    def __iter__(self) -> Iterator[Node]:
        return (self[i] for i in range(len(self)))

    def id_of(self, i: int) -> str:
        """The id of one node."""
        return str(NodeId(self.sites[int(self.site_of[i])], self._unit(i), int(self.positions[i])))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Every node's id, each once."""
        return tuple(self.id_of(i) for i in range(len(self)))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Each id's row. GossamerError when two nodes have one id."""
        numbers = {name: i for i, name in enumerate(self.ids)}
        if len(numbers) < len(self):
            twice = next(name for i, name in enumerate(self.ids) if numbers[name] != i)
            raise GossamerError(f"Two nodes of the graph have the id {twice}; ids are unique.")
        return numbers

    def number(self, node: int | str) -> int:
        """The row of a node, from its id or its row (from the end if negative). SiteError, with
        near ids, for one that is not there."""
        n = len(self)
        if isinstance(node, str) and node in self.numbers:
            return self.numbers[node]
        if not isinstance(node, str) and -n <= node < n:
            return int(node) % n
        raise SiteError(
            f"No node {node!r} in this graph of {n}; give a row from 0 to {n - 1}, or an id such "
            f"as {', '.join(self._near(str(node))) or 'those in nodes.ids'}."
        )

    def _near(self, name: str) -> list[str]:
        """Ids like this one: the same unit elsewhere, then others of its site or its position."""
        unit, site, position = (
            name.split("@")[0] + "@",
            name.split("/")[0] + "/",
            "@" + name.split("@")[-1],
        )
        same = [i for i in self.ids if i.startswith(unit)][:2]
        alike = [i for i in self.ids if i.startswith(site) or i.endswith(position)]
        some = (alike or list(self.ids))[:5000]  # each comparison takes microseconds
        near = difflib.get_close_matches(name, some, n=3, cutoff=0.3) or some[:3]
        return [*same, *(i for i in near if i not in same)]

    def of_kind(self, *kinds: Kind) -> Bool[np.ndarray, " n"]:
        """Which nodes are of one of these kinds."""
        return np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])

    @property
    def are_read(self) -> Bool[np.ndarray, " n"]:
        """Nodes into which edges go: latents and logits, but for the latents of crosscoders, which
        have no `reads`. A graph of another library may say of no node what it reads."""
        known, able = ~np.isnan(self.reads), self.of_kind("latent", "logit")
        return able & known if known.any() else able

    @property
    def targets(self) -> Int[np.ndarray, " n_targets"]:
        """Rows of the nodes that the graph explains: weight above 0."""
        return np.flatnonzero(self.weights > 0)

    def take(self, chosen: Int[np.ndarray, " n_chosen"]) -> "Nodes":
        """Some nodes, in the order given."""
        columns = {
            f.name: getattr(self, f.name)[chosen]
            for f in fields(self)
            if f.name not in ("sites", "labels")
        }
        return replace(self, **columns, labels=tuple(self.labels[int(i)] for i in chosen))

    def _unit(self, i: int) -> int | str:
        kind = KINDS[int(self.kinds[i])]
        if kind in WITHOUT_NUMBER:
            return kind
        if self.distractors[i] >= 0:
            return f"{int(self.units[i])}-{int(self.distractors[i])}"
        return int(self.units[i])

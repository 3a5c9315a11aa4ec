"""What is asked of a training run, brought together and checked before anything is begun."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gossamer.activations import LiveActivations
from gossamer.distributed import Mesh
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.training.config import TrainConfig, as_sites


def settled(configs: Sequence[TrainConfig], source: Any) -> list[TrainConfig]:
    """The configs with their sites named, checked against the source and each other."""
    if not configs:
        raise GossamerError("There is nothing to train: give at least one TrainConfig.")
    sizes = {(config.n_tokens, config.batch_tokens) for config in configs}
    if len(sizes) > 1:
        raise GossamerError(
            "SAEs trained from one pass need one n_tokens and one batch_tokens, got "
            f"{', '.join(map(str, sorted(sizes)))}; train them one by one."
        )
    sites = tuple(source.sites)
    named = []
    for config in configs:
        if config.site is None and len(sites) != 1:
            raise SiteError(f"These activations are of {', '.join(sites)}; say which with site.")
        site = config.site or sites[0]
        site_out = None if config.site_out == site else config.site_out
        for each in (*as_sites(site), *as_sites(site_out)):
            if each not in sites:
                raise SiteError(
                    f"These activations are of {', '.join(sites)}, not of {each}; harvest that "
                    "site as well."
                )
        named.append(replace(config, site=site, site_out=site_out))
    return named


def shared_by(mesh: Mesh, configs: Sequence[TrainConfig], source: Any, *, is_pair: bool) -> Any:
    """The source as the processes of a mesh read it. GossamerError where they cannot train this."""
    if mesh.size == 1:
        return source
    if is_pair:
        raise GossamerError(
            f"A Jacobian pair is trained by one process, got a mesh of {mesh.size}; leave mesh out."
        )
    for config in configs:
        if config.d_sae % mesh.tp:
            raise ShapeError(
                f"tp={mesh.tp} processes share latents in equal parts, got d_sae={config.d_sae}; "
                "give a multiple of tp."
            )
        if config.batch_tokens < mesh.dp:
            raise ShapeError(
                f"dp={mesh.dp} processes share the tokens of a batch, got "
                f"batch_tokens={config.batch_tokens}; give at least dp."
            )
    return replace(source, shared=True) if isinstance(source, LiveActivations) else source


def source_of(source: Any, site: str | tuple[str, ...] | None) -> Any:
    """The source itself, or what `as_source` makes of a tensor, a path or a live run."""
    if not isinstance(source, Tensor) and callable(getattr(source, "batches", None)):
        return source
    from gossamer.activations import as_source

    return as_source(source, site if isinstance(site, str) else None)

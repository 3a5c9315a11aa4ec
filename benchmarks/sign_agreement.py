"""Do predicted effects survive an ablation? The share of edges whose sign does, block by block.

    python benchmarks/sign_agreement.py

For each prompt and each residual SAE of pico-python: the 20 strongest latent → logit edges (the 10
highest logits at the last position), each beside the effect of really ablating its source. The
prompts are the demo's and a piece of 48 tokens from each of the first 20 held-out files that have
512 tokens.
"""

from pathlib import Path

import click
import torch

import gossamer
from gossamer.corpus import split_stdlib

DEMO = "def add(self, other):\n    return self"
MANIFEST = Path(gossamer.__file__).parent / "assets" / "pico-python" / "manifest.json"
N_FILES = 20
FIRST, LENGTH = 256, 48
N_EDGES = 20


def prompts(model: gossamer.Model) -> list[list[int]]:
    """The demo prompt, and pieces of held-out files after `<|endoftext|>`, as token ids."""
    _, held_out = split_stdlib(MANIFEST)
    files = [model.tokenize(file.text) for file in held_out]
    pieces = [[ids[0], *ids[FIRST : FIRST + LENGTH]] for ids in files if len(ids) >= 2 * FIRST]
    return [model.tokenize(DEMO), *pieces[:N_FILES]]


@click.command()
@click.option("--saes", default="pico-python", show_default=True, help="A set of residual SAEs.")
def main(saes: str) -> None:
    """Print the share of signs that agree, and the correlation, for each site."""
    torch.set_num_threads(2)
    model = gossamer.load_model("pico-python")
    coders = gossamer.load_saes(saes)
    texts = prompts(model)
    click.echo(f"{len(texts)} prompts, {N_EDGES} strongest edges each")
    for site in coders:
        found = [measured(model, coders, ids, site) for ids in texts]
        pairs = torch.cat(found)
        agree = (pairs[:, 0] * pairs[:, 1] > 0).double()
        demo = agree[: len(found[0])].mean()
        correlation = torch.corrcoef(pairs.T)[0, 1]
        click.echo(
            f"{site:28} {agree.mean():7.1%} of {len(pairs)} (demo {demo:.0%}), "
            f"correlation {correlation:.3f}, Σ|measured|/Σ|predicted| "
            f"{pairs[:, 1].abs().sum() / pairs[:, 0].abs().sum():.2f}"
        )


def measured(model: gossamer.Model, coders: object, ids: list[int], site: str) -> torch.Tensor:
    """(edges, 2): predicted and measured effect of the strongest edges of one prompt."""
    edges = gossamer.edges(
        model, coders, ids, source=gossamer.Latents(site), target=gossamer.Logits(top=10)
    )
    assert isinstance(edges, gossamer.Edges)
    effects = gossamer.measure(model, coders, edges, edges.strongest(N_EDGES))
    return torch.tensor([[each.edge.attribution, each.measured] for each in effects])


if __name__ == "__main__":
    main()

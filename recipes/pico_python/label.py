"""Say what each latent fires on: its top tokens and an example, into the SAE's directory.

    python recipes/pico_python/label.py --model DIRECTORY --saes DIRECTORY --out FILE.json

The labels of `gossamer dashboard`, of all latents over training text; white space at the start of a
line is left out. The same pass counts firings, so it also says which latents are dead; these get no
label.
"""

import json
import re
from pathlib import Path

import click
from evaluate import SETS

import gossamer
from gossamer.metrics import dead_fraction
from gossamer.saes import SAE, Labels
from gossamer.saes.labels import save_labels


@click.command()
@click.option("--model", "model_path", type=click.Path(exists=True), required=True)
@click.option("--saes", "saes_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", "n_tokens", default=1_048_576, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON of the counts.")
def main(model_path: str, saes_path: Path, n_tokens: int, out: Path) -> None:
    """Write labels.json.gz beside every SAE, and the share of dead latents as JSON."""
    model = gossamer.load_model(model_path)
    result: dict[str, dict[str, float]] = {}
    for name in SETS:
        result[name] = {}
        for site, sae in gossamer.load_saes(saes_path / name).items():
            assert isinstance(sae, SAE)
            board = gossamer.dashboard(model, sae, n_tokens=n_tokens, context=512)
            found = board.labels()
            contexts = tuple(tuple(map(unindented, texts)) for texts in found.contexts or ())
            save_labels(Labels(found.top_tokens, contexts), saes_path / name / site)
            result[name][site] = dead_fraction(board.firings)
            click.echo(f"{site}: {result[name][site]:.2%} of latents dead")
    text = json.dumps({"tokens": n_tokens, "dead_fraction": result}, indent=1, sort_keys=True)
    out.write_text(text + "\n")


def unindented(text: str) -> str:
    """Line breaks without the white space around them."""
    return re.sub(r"\s*\n\s*", "\n", text)


if __name__ == "__main__":
    main()

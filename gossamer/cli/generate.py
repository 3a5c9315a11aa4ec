"""`gossamer generate`: let a model go on with a text while latents are set or ablated."""

import json
import sys
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.options import node_fields, set_to

if TYPE_CHECKING:
    from gossamer.edits import AbstractEdit
    from gossamer.generation.result import Generation


@click.command("generate", short_help="Go on with a text while latents are set or ablated.")
@click.argument("prompt")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option(
    "--saes", "saes_name", default=None, help="Bundled set or directory; default: the model's own."
)
@click.option(
    "--steer",
    multiple=True,
    metavar="SITE/LATENT=VALUE",
    help="Set this latent to VALUE at every token, of the prompt and new (repeatable).",
)
@click.option(
    "--ablate",
    multiple=True,
    metavar="NODE",
    help="Set to zero: SITE/UNIT at every token, SITE/UNIT@POSITION at one; a latent where an SAE "
    "is, else a neuron or head; or error. HEAD@QUERY<-KEY: one weight (repeatable).",
)
@click.option("--n-tokens", default=40, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--error",
    default="attached",
    show_default=True,
    type=click.Choice(["attached", "detached", "frozen", "dropped"]),
    help="The SAEs' error terms; dropped leaves them out.",
)
@click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-k", default=None, type=int, help="Draw from this many tokens.")
@click.option("--top-p", default=None, type=float, help="Draw from the likeliest with this sum.")
@click.option("--seed", default=0, show_default=True, help="Of the draws, in both texts.")
@click.option("--stop", multiple=True, help="End after this text (repeatable).")
@click.option(
    "--prepend-bos/--no-prepend-bos",
    default=None,
    help="BOS before the prompt; default: what the SAEs' files or the model's family say.",
)
@click.option("--table", "as_table", is_flag=True, help="Print tokens and their probabilities.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def generate_command(prompt: str, model_name: str, saes_name: str | None, **options: Any) -> None:
    """Text with latents set or ablated, beside the unedited text. A backslash and n in PROMPT are a
    line break.

    \b
    Examples:
      gossamer generate "def read(self, path):\\n    " --steer blocks.2.hook_resid_pre/1740=20
      gossamer generate "import " --ablate blocks.1.hook_resid_pre/7 --temperature 0.8 --table
      gossamer generate "def f(" --ablate "blocks.2.attn.hook_z/0@3<-1"
    """
    from tqdm import tqdm

    from gossamer.edits import Ablate
    from gossamer.generation.generate import generate
    from gossamer.generation.result import Generation
    from gossamer.library import load_model, load_saes

    edits: list[AbstractEdit] = [
        *(set_to("--steer", "SITE/LATENT", text) for text in options["steer"]),
        *(Ablate(**node_fields("--ablate", text)) for text in options["ablate"]),
    ]
    model = load_model(model_name)
    of_saes = any(edit.units is None and edit.keys is None for edit in edits)
    wanted = of_saes or saes_name is not None or options["error"] == "dropped"
    saes = load_saes(saes_name or model_name) if wanted else None
    total = options["n_tokens"] * (2 if wanted or edits else 1)
    with tqdm(total=total, unit="token", leave=False, disable=not sys.stderr.isatty()) as bar:
        found = generate(
            model,
            prompt.replace("\\n", "\n"),
            saes,
            edits,
            options["n_tokens"],
            error=options["error"],
            temperature=options["temperature"],
            top_k=options["top_k"],
            top_p=options["top_p"],
            seed=options["seed"],
            stop=[text.replace("\\n", "\n") for text in options["stop"]] or None,
            prepend_bos=options["prepend_bos"],
            on_token=lambda _: bar.update(),
        )
    assert isinstance(found, Generation)  # one prompt was given
    if options["as_json"]:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print_texts(prompt.replace("\\n", "\n"), found)
        if options["as_table"]:
            _print_table(found)


def _print_texts(prompt: str, found: "Generation") -> None:
    """The texts side by side, what they share plain, and bold from where they part."""
    from rich.table import Table
    from rich.text import Text

    table, columns, shared = Table(), {"text": found}, found.text
    if (other := found.unedited) is not None:
        columns = {"edited": found, "unedited": other}
        shared = commonprefix([found.text, other.text])
        parts = found.differs_at
        table.title = "The texts are the same" if parts is None else f"They part at token {parts}"
        table.title_justify = "left"
    for name in columns:
        table.add_column(name, overflow="fold", ratio=1)
    texts = [one.text.removeprefix(shared) for one in columns.values()]
    table.add_row(*(Text.assemble((prompt, "dim"), shared, (text, "bold")) for text in texts))
    _console().print(table)


def _print_table(found: "Generation") -> None:
    """A row for each step: the tokens taken, their probabilities, and what else was likely."""
    from rich.table import Table
    from rich.text import Text

    from gossamer.views.text import show_token

    runs = [found] if found.unedited is None else [found, found.unedited]
    table = Table()
    table.add_column("step", justify="right")
    for name in ("edited", "unedited") if len(runs) > 1 else ("text",):
        table.add_column(name, overflow="fold")
        table.add_column("probability", justify="right")
        table.add_column("likeliest", overflow="fold")
    for step in range(max(len(run.tokens) for run in runs)):
        cells = [Text(str(step))]
        for run in runs:
            if step >= len(run.tokens):
                cells += [Text()] * 3
                continue
            top = zip(run.top_tokens[step], run.top_probabilities[step].tolist(), strict=True)
            likeliest = "  ".join(f"{show_token(token)} {p:.2f}" for token, p in list(top)[:3])
            shown = (show_token(run.tokens[step]), f"{run.probabilities[step]:.3f}", likeliest)
            cells += map(Text, shown)
        table.add_row(*cells)
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)

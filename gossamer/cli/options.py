"""Options that several commands have, and the kinds of values they take."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gossamer.errors import DiskError, GossamerError, check_writable


class Count(click.ParamType):
    """A whole number from 1 on, also written as 2e6."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """The number, or a sentence."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 1 or number != int(number):
            self.fail(f"{value!r} is no whole number from 1 on, such as 50000 or 2e6.", param, ctx)
        return int(number)


class OutFile(click.Path):
    """A file to write, for which there is a place: checked before any work is done."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, or a sentence."""
        path = Path(str(super().convert(value, param, ctx)))
        try:
            check_writable(path)
        except DiskError as problem:
            self.fail(str(problem), param, ctx)
        return path


def corpus_options(of_stdlib: str) -> Callable[[Any], Any]:
    """--corpus, --column, --context and --prepend-bos; `of_stdlib` says which part that is."""
    options = (
        click.option(
            "--corpus",
            default="stdlib",
            show_default=True,
            help=f"stdlib ({of_stdlib}), a text file or a directory of them, a file of token ids, "
            "a directory of a saved dataset, or hf:NAME or hf:NAME:SPLIT.",
        ),
        click.option("--column", default="text", show_default=True, help="Of a dataset's texts."),
        click.option(
            "--context",
            type=click.IntRange(min=2),
            default=None,
            help="Tokens of a block; default: up to 256.",
        ),
        click.option(
            "--prepend-bos/--no-prepend-bos",
            default=None,
            help="BOS before texts; default: what the SAE's file or the model's family says.",
        ),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def texts_of(options: dict[str, Any], name: str) -> list[str]:
    r"""The texts of a repeatable option, \n being a line break. GossamerError for an empty one."""
    if "" in options[name]:
        raise GossamerError(f"--{name.removesuffix('s')} is empty; give a text.")
    return [text.replace("\\n", "\n") for text in options[name]]


def model_options(command: Any) -> Any:
    """--model and --saes; `loaded` takes what they say."""
    saes = "Bundled set or directory, or none; default: the model's own."
    command = click.option("--saes", "saes_name", default=None, help=saes)(command)
    return click.option("--model", "model_name", default="pico-python", show_default=True)(command)


def loaded(model_name: str, saes_name: str | None, device: str | None = None) -> tuple[Any, Any]:
    """The model and its SAEs; None for `--saes none`."""
    from gossamer.library import load_model, load_saes

    model = load_model(model_name, device=device)
    if saes_name == "none":
        return model, None
    return model, load_saes(saes_name or model_name, device=device)


def node_fields(option: str, text: str, *, whole: bool = False) -> dict[str, Any]:
    """The fields of an edit that SITE/UNIT (at every token) or a node's id names; with `whole` also
    SITE. GossamerError for another text."""
    from gossamer.edits import unit_fields

    if whole and "/" not in text:
        return {"at": text}
    match = re.fullmatch(r"([^/@=]+)/([0-9]{1,9}|error)(@[0-9]{1,9}(<-[0-9]{1,9})?)?", text)
    if match is None:
        raise GossamerError(
            f"{option} takes SITE/UNIT or SITE/UNIT@POSITION such as "
            f'blocks.2.hook_resid_pre/1740@3, the unit a number or error, got "{text}".'
        )
    if match[3]:
        return {"at": text}
    unit = match[2] if match[2] == "error" else int(match[2])
    return {"at": match[1], **unit_fields(match[1], unit)}


def set_to(option: str, form: str, text: str) -> Any:
    """NODE=VALUE as an edit; `form` is how NODE is written in the option's help."""
    from gossamer.edits import Set

    node, _, number = text.rpartition("=")
    try:
        value, fields = float(number), node_fields(option, node)
    except ValueError:
        value, fields = math.nan, {}
    if not math.isfinite(value):
        raise GossamerError(
            f'{option} takes {form}=VALUE such as blocks.2.hook_resid_pre/1740=20, got "{text}".'
        )
    return Set(value=value, **fields)

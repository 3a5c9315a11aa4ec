"""Make everything in gossamer/assets/pico-python: one command, from source text to card.

    python recipes/pico_python/make_assets.py --work runs/pico-python

tokenizer → model → SAEs → labels → evaluation → manifest → card. Every step leaves its result in
the work directory, and one whose result is there is not done again; a training that was stopped
goes on from its last checkpoint. The assets are put together in `<work>/pico-python`, measured
there, and copied out only when they are whole. On another machine, or with another number of
threads, rounding differs, and so do the last digits of everything.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from card import write_card
from evaluate import SETS
from train_saes import PARTS, RATES, WEIGHT, sites_of

from gossamer.corpus import split_stdlib

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "gossamer" / "assets" / "pico-python"
MAX_BYTES = 18 * 2**20
"""What all files together may take."""

SEED = 0
MODEL_STEPS = 3000
SAE_TOKENS = 8_000_000


def step(script: str, result: Path, *arguments: str, **options: Any) -> None:
    """Run a recipe beside this file unless its result is there."""
    if result.exists():
        click.echo(f"{script}: done before, {result}")
        return
    flags = [*arguments]
    flags += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    click.echo(f"{script} {' '.join(flags)}")
    subprocess.run([sys.executable, HERE / script, *flags], check=True)
    if not result.exists():
        raise click.ClickException(f"{script} ended without {result}.")


def stage_model(work: Path, staged: Path) -> None:
    """Copy what of the model is shipped, the tokenizer without white space."""
    staged.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(work / "model" / name, staged / name)
    tokenizer = json.loads((work / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (staged / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    write_json(
        staged / "tokenizer_config.json",
        {
            "bos_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",  # which transformers 4 knows as well
        },
    )


def stage_saes(work: Path, staged: Path) -> None:
    """Copy the SAEs, not the checkpoint of their training; labels that are there stay."""
    for header in sorted((work / "saes").glob("*/*/sae.json")):
        if header.parent.parent.name not in SETS:
            continue
        directory = staged / header.parent.parent.name / header.parent.name
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("sae.safetensors", "sae.json"):
            shutil.copyfile(header.parent / name, directory / name)


def make_manifest(work: Path, staged: Path) -> dict[str, Any]:
    """What the assets were made from and with, and what they measure."""
    trained = work / "model" / "manifest.json"
    header = next(staged.glob("resid/*/sae.json"))
    _, held_out = split_stdlib(trained)
    shipped = sorted(file for file in staged.rglob("*") if is_measured(file))
    return {
        "name": "pico-python",
        "command": "make assets",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tokenizers", "torch", "transformers")},
        "seeds": {"model": SEED, "saes": SEED},
        "model_steps": json.loads(trained.read_text())["steps"],
        "sae_training": json.loads(header.read_text())["metadata"]["training"],
        "rates": RATES,
        "tokens": {name: int(SAE_TOKENS * part) for name, part in PARTS.items()},
        "jacobian_weight": WEIGHT,
        "evaluation": json.loads((work / "evaluation.json").read_text()),
        "labels": json.loads((work / "labels.json").read_text()),
        "sha256": {
            file.relative_to(staged).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in shipped
        },
        "digests": "the first 16 hexadecimal digits of the SHA-256 of a file's text",
        "held_out": {file.path: file.digest for file in held_out},
        "training": json.loads(trained.read_text())["training"],
    }


def is_measured(file: Path) -> bool:
    """Whether a staged file is listed with its hash in the manifest."""
    return file.is_file() and file.name not in ("manifest.json", "README.md")


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """The same contents always give the same bytes."""
    text = json.dumps(contents, indent=0, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def publish(staged: Path, out: Path) -> int:
    """Replace `out` by a copy of `staged`; returns the number of bytes."""
    n_bytes = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file())
    if n_bytes > MAX_BYTES:
        raise click.ClickException(
            f"{staged} has {n_bytes:,} bytes, more than the {MAX_BYTES:,} allowed; "
            "shorten the labels."
        )
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(staged, fresh, copy_function=shutil.copyfile)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return n_bytes


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("runs/pico-python"),
    show_default=True,
    help="Where unfinished and finished steps are kept.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=ASSETS, help="Default: the package's assets."
)
def main(work: Path, out: Path) -> None:
    """Make the bundled model, SAEs and labels again: hours on two cores, minutes if nearly done."""
    tokenizer, model, saes = work / "tokenizer", work / "model", work / "saes"
    staged = work / "pico-python"
    step("train_tokenizer.py", tokenizer / "tokenizer.json", out=tokenizer)
    # The manifest is the last file that each training writes.
    step(
        "train_model.py",
        model / "manifest.json",
        tokenizer=tokenizer,
        out=model,
        steps=MODEL_STEPS,
        seed=SEED,
    )
    stage_model(work, staged)
    for name in RATES:
        last = saes / name / sites_of(name)[-1] / "sae.json"
        step("train_saes.py", last, name, model=staged, out=saes, tokens=SAE_TOKENS, seed=SEED)
    stage_saes(work, staged)
    step(
        "label.py",
        work / "labels.json",
        model=staged,
        saes=staged,
        out=work / "labels.json",
    )
    step(
        "evaluate.py",
        work / "evaluation.json",
        model=staged,
        saes=staged,
        plain=saes / "jacobian-plain",
        out=work / "evaluation.json",
    )
    manifest = make_manifest(work, staged)
    write_json(staged / "manifest.json", manifest)
    write_card(staged / "README.md", manifest)
    click.echo(f"{publish(staged, out):,} bytes in {out}")


if __name__ == "__main__":
    main()

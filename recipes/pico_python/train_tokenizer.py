"""Train pico-python's byte-level BPE (4096 tokens) on the training part of the standard library.

python recipes/pico_python/train_tokenizer.py --out DIRECTORY
"""

from pathlib import Path

import click
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gossamer.corpus import split_stdlib

# A line break with the indentation after it is one piece, since that is how Python reads it; words
# take the space before them, as in GPT-2.
PIECES = r"[ \t]*(?:\n[ \t]*)+| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[ \t]+|\s+"
END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `vocabulary_size` tokens, `<|endoftext|>` being token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to write.")
@click.option("--vocabulary-size", default=4096, show_default=True)
def main(out: Path, vocabulary_size: int) -> None:
    """Train the tokenizer and save it in transformers' format."""
    training, held_out = split_stdlib()
    tokenizer = train_tokenizer([file.text for file in training], vocabulary_size)
    tokenizer.save_pretrained(out)
    n_bytes = sum(len(file.text.encode()) for file in held_out)
    n_tokens = sum(len(tokenizer(file.text)["input_ids"]) for file in held_out)
    click.echo(
        f"{len(training)} training files, {len(held_out)} held out: "
        f"{n_bytes / n_tokens:.3f} bytes/token"
    )


if __name__ == "__main__":
    main()

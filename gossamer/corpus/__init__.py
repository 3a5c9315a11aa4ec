"""Token sequences to run a model on."""

from gossamer.corpus.blocks import TokenBlock, blocks, chosen_context, puts_bos
from gossamer.corpus.documents import Corpus, as_corpus
from gossamer.corpus.stdlib import (
    HELD_OUT_ONE_IN,
    SourceFile,
    is_held_out_path,
    read_stdlib,
    split_stdlib,
)

__all__ = [
    "HELD_OUT_ONE_IN",
    "Corpus",
    "SourceFile",
    "TokenBlock",
    "as_corpus",
    "blocks",
    "chosen_context",
    "is_held_out_path",
    "puts_bos",
    "read_stdlib",
    "split_stdlib",
]

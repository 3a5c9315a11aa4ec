"""What a user can mend. The command line prints the message and exits 2; the server answers 422.

    GossamerError        base of all below, itself a ValueError
    ├── SiteError        a place that this model, or this set of SAEs, does not have
    ├── ShapeError       tensors whose widths do not fit each other
    ├── FormatError      a file that is missing, damaged, unknown, or unsafe to read
    └── PromptError      a prompt, token or position that this model cannot take

A message is one sentence: what was got, what is allowed, what to do.
"""


class GossamerError(ValueError):
    """Base of the errors a user can mend."""


class SiteError(GossamerError):
    """A site, node or latent that is not there."""


class ShapeError(GossamerError):
    """Tensors whose shapes do not fit each other."""


class FormatError(GossamerError):
    """A file or directory that cannot be read as what it should be."""


class PromptError(GossamerError):
    """A prompt, token string or position that this model cannot take."""

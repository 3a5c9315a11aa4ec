"""SAELens directories (cfg.json, sae_weights.safetensors), read and written without SAELens.

SAELens stores W_enc as (d_in, d_sae). Version 6 keeps facts about the model under "metadata"; older
files are flat.
"""

from gossamer.interop.sae_lens.layout import is_sae_lens
from gossamer.interop.sae_lens.reading import read_sae_lens
from gossamer.interop.sae_lens.writing import write_sae_lens

__all__ = ["is_sae_lens", "read_sae_lens", "write_sae_lens"]

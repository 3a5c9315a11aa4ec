"""Edges over a corpus: a sparse table of which latent drives which, at which distance, how much."""

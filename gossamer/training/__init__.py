"""Training SAEs and transcoders: one loop, and one file for each architecture's own loss."""

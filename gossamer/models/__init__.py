"""A Hugging Face causal language model seen through its sites: one table per family."""

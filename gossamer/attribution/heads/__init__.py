"""Attention heads of one prompt: which carry an edge, and which parts of the stream make them look
somewhere."""

"""Edges and nodes of a graph against what happens when their sources are really changed."""

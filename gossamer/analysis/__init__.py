"""Derived scalars of nodes, and tables of them that add up to a direction of interest."""

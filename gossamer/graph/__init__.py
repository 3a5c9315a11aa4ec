"""Attribution graphs as data: nodes, sparse edges, influence, pruning, files; no model inside."""

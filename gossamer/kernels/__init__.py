"""Fast functions on tensors, each beside the plain torch reference it must equal."""

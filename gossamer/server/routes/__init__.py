"""Routes by topic; each hands its body to the verb of its name."""

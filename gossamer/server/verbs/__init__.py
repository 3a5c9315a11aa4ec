"""The verbs: a body in, the answer as plain values out; each calls the function of its name, in the
worker's thread, with a word to it between steps."""

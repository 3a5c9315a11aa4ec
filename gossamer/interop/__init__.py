"""Files of other libraries, one format per module, read and written.

Other libraries say "feature" for what is called a latent here, and "hook point" for a site.

    formats           FORMATS, format_at                 every format of SAEs, detected by content
    releases, hub     RELEASES, fetched                  published SAEs by name, and their files
    sae_lens          read_sae_lens, write_sae_lens      SAELens directories
    transformer_lens  read_transformer_lens              TransformerLens' own models, as GPT-2
    graph_json        read_graph_json, write_graph_json  graphs for pages, Neuronpedia
    circuit_tracer    read_graph_pt, write_graph_pt      graphs as circuit-tracer stores them
    graphs            load_graph                         a graph of any of these, or native
"""

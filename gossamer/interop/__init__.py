"""Files of other libraries, one format per module, read and written.

Other libraries say "feature" for what is called a latent here, and "hook point" for a site.

    sae_lens          read_sae_lens, write_sae_lens      SAELens directories
    graph_json        read_graph_json, write_graph_json  graphs for pages, Neuronpedia
    circuit_tracer    read_graph_pt, write_graph_pt      graphs as circuit-tracer stores them
    graphs            load_graph                         a graph of any of these, or native
"""

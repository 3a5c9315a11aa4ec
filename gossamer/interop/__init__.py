"""Files of other libraries, one format per module, read and written.

Other libraries say "feature" for what is called a latent here, and "hook point" for a site.
"""

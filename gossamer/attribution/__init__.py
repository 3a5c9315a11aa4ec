"""Which latents drive which latents and which outputs, by how much, and whether it survives an
edit."""

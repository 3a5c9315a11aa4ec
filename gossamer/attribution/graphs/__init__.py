"""Attribution graphs of one prompt: where nodes write and are read, and the edges between them."""

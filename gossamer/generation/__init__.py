"""Text that a model goes on with while SAEs are spliced in and edits made, token by token."""

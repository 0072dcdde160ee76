"""A phantom that looks like a heart, and figures of what a run made of it."""

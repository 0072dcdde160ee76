"""A phantom of a heart, and a short training on it with tables and figures."""

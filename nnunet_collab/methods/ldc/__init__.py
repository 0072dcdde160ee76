"""LDC, with the parts only it uses."""

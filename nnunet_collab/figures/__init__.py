"""Figures for people: predictions drawn over images, and the curves of a training."""

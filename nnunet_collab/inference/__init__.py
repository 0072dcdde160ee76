"""Publish students as ordinary nnU-Net models."""

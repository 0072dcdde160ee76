"""Publish students as ordinary nnU-Net models, and hand models on."""

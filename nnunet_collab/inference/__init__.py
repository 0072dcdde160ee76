"""Publishing students as ordinary nnU-Net models."""

"""Data for training: preprocessing and loading of unlabeled images, their views, and batches of both kinds."""

"""Raw nnU-Net datasets from the folders in which data sets are distributed."""

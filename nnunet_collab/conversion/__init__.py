"""Convert datasets, in the folders in which they are distributed, to raw nnU-Net datasets."""

"""Networks that teach each other, from labelled and unlabelled images, on stock nnU-Net v2."""

__version__ = "0.1.0"

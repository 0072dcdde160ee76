"""Networks that teach each other, from labeled and unlabeled images, on stock nnU-Net v2."""

__version__ = "0.1.0"

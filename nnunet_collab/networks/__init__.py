"""Networks that nnU-Net plans can describe, and the classes that combine them into students."""

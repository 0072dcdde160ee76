"""Networks that nnU-Net plans can describe, and what joins them into students."""

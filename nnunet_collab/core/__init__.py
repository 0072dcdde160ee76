"""What the layers hand to each other; imports nothing of the package but itself."""

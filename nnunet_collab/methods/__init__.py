"""A paper on one screen: settings and loss terms."""

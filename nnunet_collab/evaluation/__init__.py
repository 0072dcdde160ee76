"""Metrics, predictions against labels, and the statistics of both."""

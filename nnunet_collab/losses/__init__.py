"""Losses: functions of tensors that return a float32 scalar; the stop-gradient is inside each of them."""

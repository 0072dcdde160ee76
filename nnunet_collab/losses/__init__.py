"""Losses: functions of tensors that return a float32 scalar. Each loss detaches its targets itself."""

"""Optimizers, parameter groups, schedules (functions of the step), moving average of weights."""

"""Optimizers, parameter groups, schedules as functions of the step, and the weight average."""

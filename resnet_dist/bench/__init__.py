"""What limits the speed of training here: the loader, the step, or both."""

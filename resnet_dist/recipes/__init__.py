"""The shipped configs as recipes: what they reach, what they cost, where they come from."""

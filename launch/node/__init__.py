"""The job itself: what each node does, and what follows when all nodes have ended."""

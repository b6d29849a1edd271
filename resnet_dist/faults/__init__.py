"""What goes wrong with a run from outside or inside, and how it is noticed."""

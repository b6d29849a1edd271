"""Kill a small run again and again, and compare its end with an uninterrupted run's."""

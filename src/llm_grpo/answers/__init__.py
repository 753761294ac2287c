"""What a text says: taking an answer out of it, and when two answers are equal."""

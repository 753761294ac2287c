"""What is wrong with a run, in a sentence."""

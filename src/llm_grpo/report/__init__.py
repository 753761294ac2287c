"""What a person sees: tables, curves, a confusion matrix."""

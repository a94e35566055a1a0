"""Experiments as records: `default` has every field, the others are deltas."""

"""Weights of other projects, brought into models of ours: `sam-blvit import`."""

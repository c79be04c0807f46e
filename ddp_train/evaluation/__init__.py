"""Trained models in use: opened from a run folder, evaluated on a test split, exported."""

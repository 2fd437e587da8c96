"""Procedural shapes of 14 categories with captions: a data set that needs no download."""

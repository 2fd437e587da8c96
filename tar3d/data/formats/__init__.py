"""Formats on disk: one file for each format or layout, which alone reads and writes it."""

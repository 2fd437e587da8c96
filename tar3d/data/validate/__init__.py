"""Checks a data set against docs/data.md and draws some shapes, so that errors are seen."""

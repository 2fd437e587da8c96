"""Data sets for training: items for the tokenizer and the GPT, and the order they come in."""

"""What training draws: items for the tokenizer and the GPT, and the order in which they come."""

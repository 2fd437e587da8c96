"""Data: formats on disk, data sets for training, and the commands that make and check them."""

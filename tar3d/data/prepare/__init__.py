"""From meshes to training samples, views and tables, with a report of what was refused."""

"""Work spread over processes of one machine, or over a Ray cluster."""

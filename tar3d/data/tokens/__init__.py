"""From samples, views and captions to the token shards that the GPT trains on."""

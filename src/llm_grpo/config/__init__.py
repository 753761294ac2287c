"""What a YAML file says: the schema, its reading, the names under `grpo:`."""

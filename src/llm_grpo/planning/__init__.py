"""What a config will do, and what this machine lacks for it, before it is done."""

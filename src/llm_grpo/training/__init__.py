"""TRL's trainer put together, watched and recorded."""

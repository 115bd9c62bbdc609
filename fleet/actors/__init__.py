"""What every actor and replica is made of: supervised background tasks, start-up that is tried again, single-flight."""

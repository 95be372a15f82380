"""What the world tells the process: scheduler, grace period, signals."""

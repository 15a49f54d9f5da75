"""`covey demo`: two real daemons on this machine act the main story, by the very commands that a user types."""

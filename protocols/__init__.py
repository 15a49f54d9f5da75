"""What goes over the wire: sans-IO cores and the thin shells that drive them."""

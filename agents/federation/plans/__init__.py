"""What a plan may ask for, what of it does not compose, and what its privacy costs."""

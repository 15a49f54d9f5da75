"""DAGs from others: the walk, whom it asks, and a stream of all of it beside them."""

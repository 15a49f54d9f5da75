"""The control API: operations as data, and the faces that serve them."""

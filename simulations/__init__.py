"""Many nodes in one process, on a virtual clock, driving the cores of the daemon itself."""

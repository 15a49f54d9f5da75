"""Aggregation that knows what LoRA is: B A counts, and avg(B) avg(A) is not avg(B A). One way a file.

Each file has a class with `combine`; what it does to the mean of the clients' products is in its docstring: exact, or
how not. `registry.LORA` finds them by the name that a plan calls them.
"""

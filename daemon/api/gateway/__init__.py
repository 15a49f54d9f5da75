"""The gateway: what this node shows to everybody, over plain HTTP. It reads what is here and never fetches.

`request` reads what is asked, `answer` decides what is said to it, both without IO of their own; `asgi` and `served`
are the shell, with its limits.
"""

"""Chats: what was said, which adapter answers, what was read to answer; a pure core and the shell that drives it."""

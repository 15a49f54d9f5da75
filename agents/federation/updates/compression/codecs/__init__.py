"""The codecs there are, one a file."""

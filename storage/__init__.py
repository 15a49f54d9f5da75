"""Bytes and disks: blocks, files, pins, keys and the catalog. Synchronous; knows no network, event loop or clock."""

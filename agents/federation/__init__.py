"""Federated rounds between peers. FEDERATION.md says how they go, and why any member can prove what came of them."""

"""Secure aggregation: a coordinator learns the sum of the updates, and of each update nothing.

`quantise` makes an update whole numbers, `shamir` splits seeds over the numbers of `group`, `masks` hides, and `sides`
are the two sides, without IO. The same in events: `secure_stages` and `secure_complaints` of `events`,
`secure_client` of `members`, `secure_total` of `results`. What it hides, and from whom, stands in agents/FEDERATION.md.

Source: Bonawitz et al., Practical secure aggregation (CCS 2017), figure 4, with the consistency round.
"""

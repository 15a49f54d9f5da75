"""GossipSub: messages of a topic to everybody who listens to it, over a mesh that looks after itself."""

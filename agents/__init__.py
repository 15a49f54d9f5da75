"""What a node does with blocks and messages: adapters, chat, retrieval and the engine."""

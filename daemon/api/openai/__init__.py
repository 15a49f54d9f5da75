"""The OpenAI-compatible face: a node's models and adapters for programs that speak OpenAI's API. See OPENAI.md."""

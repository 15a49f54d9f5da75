"""An OpenAI-compatible server in the place of the embedded engine: vLLM, llama.cpp, another Covey, a cloud's."""

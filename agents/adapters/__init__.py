"""LoRA adapters: looked into, published, announced, heard of, fetched and chosen."""

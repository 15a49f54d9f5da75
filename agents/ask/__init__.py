"""Remote inference: answer the questions of trusted peers, and ask theirs."""

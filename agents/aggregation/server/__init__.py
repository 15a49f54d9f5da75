"""What the server does with the common change, one a file: optimizers over rounds."""

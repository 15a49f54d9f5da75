"""What travels of a training: tensors in one form of file, adapters, variates, and codecs that make it smaller."""

"""What one member does next, given the book and the time: it takes part, coordinates, answers. No IO."""

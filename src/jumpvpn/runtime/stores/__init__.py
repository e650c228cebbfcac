"""Session records behind one small interface: versioned compare-and-swap."""

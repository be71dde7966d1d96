"""layerformat."""

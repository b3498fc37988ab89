"""Collections (which data), and data modules (how they are served)."""

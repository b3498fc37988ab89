"""From files to samples: one reader for each format."""

"""What all attacks share that match gradients: from observations to a search, and a yardstick for what it found."""

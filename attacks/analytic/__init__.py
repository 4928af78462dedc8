"""Recovery by solving: where the first layer is linear, its gradient holds the images themselves."""

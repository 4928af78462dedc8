"""What an attacker trains on its auxiliary images: an inverse of a data defence, and a classifier of what is left."""

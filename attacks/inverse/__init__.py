"""What an attacker learns beside the inverse: to read classes, and who had a part in an image."""

"""Running: the setup of a trial, one trial, a single run, a sweep, and what they leave on disk."""

"""Configuration, Ray worker slots, Tune trials and sweeps, MLflow tracking, reports and the command line."""

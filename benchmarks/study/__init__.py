"""The published study: what each defence leaves an attacker, and what it costs, on four data sets."""

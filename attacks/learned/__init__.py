"""An attack that is learnt from updates which the attacker made itself."""

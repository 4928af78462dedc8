"""A learnt inverse of a defence: what an attacker trains, and the adversary in a defence's own game.

It lies here and not with the attacks since a defence may not know them: the adversary of the game is to be of
the audit's own family (DESIGN.md 2).
"""

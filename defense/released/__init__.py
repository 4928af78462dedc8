"""Defences of a finished classifier's answers, its confidence vectors, and the inversion model that they reckon with.

The inversion model lies here and not with the attacks since a defence may not know them, and has to know what an attacker
would train (`lpa`, `lfp`).
"""

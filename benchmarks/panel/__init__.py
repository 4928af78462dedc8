"""The cross panel: every defence of updates under one attacker that knows each, at several strengths, on two sets."""

"""The second threat model: a finished classifier is released, and an attacker rebuilds what its classes look like."""

from __future__ import annotations

import torch

from fedveil.defense import DefenseContext, LatentNoise, PublicReconstruction, TrainedOn
from fedveil.fl.data.images import Images


def test_it_is_latent_noise_of_no_strength_and_draws_nothing(context: DefenseContext, private: Images) -> None:
    settings, noise = PublicReconstruction(public_steps=3), LatentNoise(strength=0, public_steps=3)
    assert settings.trained_on is TrainedOn.PUBLIC
    prepared = settings.prepare(private, context, settings.pretrain(context), client=0)
    other = noise.prepare(private, context, noise.pretrain(context), client=0)
    x, stream = private.floats(), torch.Generator().manual_seed(1)
    found = prepared.data(x, None, stream)
    assert torch.equal(stream.get_state(), torch.Generator().manual_seed(1).get_state())
    torch.testing.assert_close(found, other.data(x, None, torch.Generator()))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    surrogate = prepared.surrogate()
    assert surrogate.data is not None
    assert torch.equal(surrogate.data(x, private.labels, torch.Generator()), found)
    assert repr(prepared) == "PreparedReconstruction()"

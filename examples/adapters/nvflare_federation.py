"""A federation in NVFlare for the filter beside it: two clients that take one step on their only image, the worst case."""

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor

import fedveil as fv

RATE = 0.01


class Net(torch.nn.Sequential):
    """The federation's model: any nn.Module."""

    def __init__(self):
        torch.manual_seed(0)  # the same first weights each time
        super().__init__(torch.nn.Conv2d(1, 16, 5), torch.nn.Sigmoid(), torch.nn.Flatten(), torch.nn.Linear(12544, 3))


def own_images(fl_ctx):
    """Return the images that the site trains on: one each for site-1 and site-2."""
    return fv.load_data("mni152", size=32).train.take([300 * int(fl_ctx.get_identity_name()[-1])])


class OneStep(Executor):
    """Trains."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        """See NVFlare's Executor."""
        model, own = Net(), own_images(fl_ctx)
        model.load_state_dict({name: torch.as_tensor(came) for name, came in from_shareable(shareable).data.items()})
        torch.nn.functional.cross_entropy(model(own.floats()), own.labels).backward()
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        return DXO(DataKind.WEIGHTS, weights, {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()

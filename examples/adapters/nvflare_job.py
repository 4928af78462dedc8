"""A federation of two NVFlare clients in its simulator, with the filter of nvflare_filter.py on both of a client's ways."""

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.defs import FilterType
from nvflare_filter import RATE, LeakFilter, Net, own_images


class OneStep(Executor):
    """Takes one step on the site's only image: the worst case."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        """See NVFlare's Executor."""
        model, own = Net(), own_images(fl_ctx)
        model.load_state_dict({name: torch.as_tensor(came) for name, came in from_shareable(shareable).data.items()})
        torch.nn.functional.cross_entropy(model(own.floats()), own.labels).backward()
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        return DXO(DataKind.WEIGHTS, weights, {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()


if __name__ == "__main__":
    job = FedAvgJob(Net(), n_clients=2, num_rounds=2, name="leak", key_metric="")
    job.to_clients(OneStep(), tasks=["train"])
    for way in (FilterType.TASK_DATA, FilterType.TASK_RESULT):
        job.to_clients(LeakFilter(), filter_type=way, tasks=["train"])
    job.simulator_run("leak_workspace", n_clients=2, threads=2)

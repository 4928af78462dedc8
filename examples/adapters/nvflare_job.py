"""The federation of nvflare_federation.py in NVFlare's simulator, with the filter on both of a client's ways."""

from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.defs import FilterType
from nvflare_federation import Net, OneStep
from nvflare_filter import LeakFilter

if __name__ == "__main__":
    job = FedAvgJob(Net(), n_clients=2, num_rounds=2, name="leak", key_metric="")
    job.to_clients(OneStep(), tasks=["train"])
    for way in (FilterType.TASK_DATA, FilterType.TASK_RESULT):
        job.to_clients(LeakFilter(), filter_type=way, tasks=["train"])
    job.simulator_run("leak_workspace", n_clients=2, threads=2)

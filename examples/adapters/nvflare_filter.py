"""Audits live what an NVFlare client sends: a filter of both ways, which tells the server what it found as a metric."""

import torch
from nvflare.apis.dxo import DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare_federation import RATE, Net, own_images

import fedveil as fv


class LeakFilter(DXOFilter):
    """Keeps the weights that came, and attacks those that go."""

    def __init__(self):
        super().__init__([DataKind.WEIGHTS], None)

    def process_dxo(self, dxo, shareable, fl_ctx):
        """See NVFlare's DXOFilter."""
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            fl_ctx.set_prop("came", dxo.data, private=True)
            return None
        model = Net()
        model.load_state_dict({name: torch.as_tensor(value) for name, value in fl_ctx.get_prop("came").items()})
        update = fv.update_between(model, dxo.data, learning_rate=RATE)
        report = fv.audit(model, update, images=own_images(fl_ctx), attacks=[fv.DeepLeakage(steps=100)])
        dxo.set_meta_prop(MetaKey.INITIAL_METRICS, {"leak_mse": report.worst("mse")})
        return dxo

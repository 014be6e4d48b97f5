"""PackNet and two baselines, which learn a stream of tasks in one network behind one interface, `Approach`."""

from tf_packnet.approaches.base import Approach
from tf_packnet.approaches.memory import Memory
from tf_packnet.approaches.multinet import Multinet
from tf_packnet.approaches.networks import conv, mlp, text
from tf_packnet.approaches.packnet import PackNet

__all__ = ["Approach", "Memory", "Multinet", "PackNet", "conv", "mlp", "text"]

"""Ways to learn a stream of tasks in one network, behind one interface: `learn(task)`, `predict(task, x)`."""

from tf_packnet.approaches.base import Approach
from tf_packnet.approaches.networks import conv, mlp
from tf_packnet.approaches.packnet import PackNet

__all__ = ["Approach", "PackNet", "conv", "mlp"]

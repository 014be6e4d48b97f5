"""Stage keys of fixed configs. A code change that alters a key makes all stored stages unusable.

A new field of `Config` needs `neutral=...` in its declaration, see "Add a flag" in CONTRIBUTING.md. If the results of
stages have changed, increase `SCHEMA` in tf_packnet/runs/stages.py and enter the new keys here.
"""

import hashlib

import pytest

from tf_packnet.runs.config import Config
from tf_packnet.runs.stages import chain, shared_beginning

MNIST = {"dataset": "mnist", "batch_size": 128, "train_epochs": 72, "retrain_epochs": 72, "prune_rounds": 1}
CONV = {"model": "conv", "hidden_units": (8,), "dropout": 0.2, "precision": "mixed_bfloat16"}
KEYS = [
    (
        {},
        ["c46901f3e7647cfe469287e7149cb1ce", "ca46d2a195518dd9bb4cf2ec005515ba"],
        ["8a6330425292b326e52b43911bf69520", "d8b9a15a5e3379984bf34eb6bb121405"],
        "061d0977794713912c7d33bba1ec3d63",
    ),
    (
        {**MNIST, "seed": 3, "final_prune": 0.95},
        ["364b60bec8bc78439dd82b89059f427d", "35d505c559676e24d1a5131552692e9a"],
        ["fe4a2ce12cb76ff40c3a3d7d61b2e905", "e5b1ddcf821fe68db3aeb7fb58fda3ed"],
        "441d942bd48c7a57d7ebb1975f0b9ae2",
    ),
    (
        {**CONV, "freed_weights": "keep", "head": "shared", "prune_scope": "erk"},
        ["a6030849e3086028cc1e48dfbcec826d", "7c31f1873583329e795150bf54b09b3d"],
        ["7d98b9e9da6b4ff57ef1ea26f69ad844", "7f31c35670b000c3f5080e57ca9c55ff"],
        "0b26ec321842bc2e3b4aed61a070597d",
    ),
    (
        {"approach": "memory", "budget": "epochs", "optimizer": "sgd", "learning_rate": 0.5},
        ["6faf8a4a21fb8875459a64b5e05f345e", "a026a00ead1a3b27fb25c37b83ab0df1"],
        ["ed80a6a0a0158bd5910867c27affb4a8", "b19697dd7cbaac6908154459c5ecfb12"],
        "83d3b43cde20ef14b61d775fca38c75b",
    ),
    (
        {"approach": "multinet", "bias_policy": "per_task", "fc8192": "dense"},
        ["2c0465ba7407473db07ace1c3d88e5bf", "8109d06a85d1a1674d42344490e5e1d0"],
        ["82926d7803525c3835b3c018180d4941", "9d9d8034ccb66273bdf31a63b7bde3b7"],
        "30b602d6253918e47a6f4e6e831dd7e3",
    ),
]


@pytest.mark.parametrize(("fields", "first_task", "second_task", "beginning"), KEYS)
def test_stage_keys_do_not_change(fields, first_task, second_task, beginning):
    config = Config(**fields)
    stages = chain(config, (1, 2), "data", {"xla": "step", "threads": 1})
    keys = [stage.key for stage in stages]
    assert keys == [*first_task, *second_task], "stored stages would be computed again: read the top of this file"
    assert hashlib.sha256(shared_beginning(config).encode()).hexdigest()[:32] == beginning

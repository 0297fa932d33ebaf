"""Imports of the fork server. They must not start threads: a forked process would not have them."""

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - every ZeRO engine imports it, in a second
import hypothesis  # noqa: F401
import pytest  # noqa: F401
import torch
import torch._dynamo

import ssl_core.pretraining.train  # noqa: F401
import tests.support.tiny_resnet  # noqa: F401

torch.set_num_threads(1)
